"""DINO ViT-B/8 (Caron et al. 2021, arXiv 2104.14294), by the self-similarity of its keys. Imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from riebench.core.hub import Weights, missing_files, weights_folder
from riebench.metrics.networks.base import Description, Network

if TYPE_CHECKING:
    import torch

    from riebench.metrics.networks.remembered import Remembered

SIZE = 224
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class DinoNetwork(Network):
    """DINO, which once loaded is called with images and returns (their cosines `[b, n, n]`,), as `KeySimilarity`."""

    key, label = "dino", "DINO"
    fetch_name = "dino-vitb8"
    weights = (
        Weights(
            repo="facebook/dino-vitb8",
            revision="6bd5b7757e4224b035fe579f31fb816985e18e35",
            files=("config.json", "model.safetensors"),
            gigabytes=0.34,
        ),
    )

    def describe(self) -> Description:
        (weights,) = self.weights
        there = not missing_files(weights)
        file = [weights_folder(self.fetch_name, weights) / weights.files[-1]] if there else []
        words = f"bilinear, antialiased, to {SIZE} x {SIZE}, mean {MEAN}, std {STD}"
        return Description("DINO ViT-B/8", file, words, fetch=self.fetch_name)

    def load(self, device: torch.device | str, batch_size: int, keep_marks: bool) -> Remembered:
        from riebench.metrics.networks.key_similarity import KeySimilarity, load_vit
        from riebench.metrics.networks.remembered import Remembered

        model = load_vit(self.fetch_name, weights_folder(self.fetch_name, self.weights[0]), device)
        return Remembered(KeySimilarity(model, SIZE, MEAN, STD), device, batch_size)


DINO = DinoNetwork()
