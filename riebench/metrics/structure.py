"""Structure distance: how far the layout of an image is from the original's, whatever its colours (protocol §7).

Tumanyan et al., "Splicing ViT Features for Semantic Appearance Transfer", 2022 (arXiv 2201.00424), eq. 3 and 4: the
cosines of the keys of DINO's deepest layer (ViT-B/8, Caron et al. 2021, arXiv 2104.14294), each token's of all heads
together and the [CLS] token's among them, with one another. The distance is the mean of the squared differences of two
images' cosines, as PIE-Bench reports it (Ju et al. 2023, arXiv 2310.01506). Images are in [0, 1] before DINO's
normalisation, as it was trained; PIE-Bench's published code gives it 0 to 255, so values do not compare with its table.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as TF
from transformers import ViTModel

from riebench.core.hub import missing_files, weights_folder
from riebench.metrics import ScoreBatch
from riebench.metrics.shared import SharedMetric
from riebench.metrics.weights import DINO, METRIC_WEIGHTS, Network

SIZE = 224
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
KEYS = ("k_proj", "key")  # what transformers calls the projection, from version 5 on and before


class StructureDistance(SharedMetric):
    """Mean squared difference of the intervened and the original image's key self-similarity."""

    name, label = "structure_distance", "Structure distance"
    uses = ("dino",)
    source = "Tumanyan et al. 2022 (arXiv 2201.00424)"
    always = True
    higher_is_better = False
    bounds = (0.0, 4.0)

    def score(self, batch: ScoreBatch) -> np.ndarray:
        ours_bnn, original_bnn = (self.models.dino(images)[0] for images in (batch.intervened, batch.original))
        return (ours_bnn - original_bnn).square().double().mean(dim=(1, 2)).cpu().numpy()


def preprocess(images_bchw: torch.Tensor) -> torch.Tensor:
    """Images in [0, 1] as DINO reads them."""
    resized = TF.resize(images_bchw, [SIZE, SIZE], InterpolationMode.BILINEAR, antialias=True)
    return TF.normalize(resized, list(MEAN), list(STD))


def self_similarity(model: ViTModel, pixels_bchw: torch.Tensor) -> torch.Tensor:
    """Cosines `[b, n, n]` of the n tokens' keys in the model's last layer with one another."""
    keys: list[torch.Tensor] = []
    handle = _key_projection(model).register_forward_hook(lambda _module, _inputs, output: keys.append(output))
    try:
        with torch.no_grad():
            model(pixels_bchw)
    finally:
        handle.remove()
    unit_bnc = F.normalize(keys[0], dim=2)
    return unit_bnc @ unit_bnc.transpose(1, 2)


def load_dino(device: torch.device | str = "cpu") -> Callable[[torch.Tensor], tuple[torch.Tensor]]:
    """Images in [0, 1] -> (their self-similarity,). Raises `UserError` where the weights are not on this machine."""
    folder = weights_folder(DINO, METRIC_WEIGHTS[DINO][0])
    settings = {"local_files_only": True, "use_safetensors": True, "add_pooling_layer": False}
    model = ViTModel.from_pretrained(folder, dtype=torch.float32, **settings).to(device).eval().requires_grad_(False)
    return lambda images_bchw: (self_similarity(model, preprocess(images_bchw)),)


def network() -> Network:
    """What is known of DINO without loading it."""
    weights = METRIC_WEIGHTS[DINO][0]
    there = not missing_files(weights)
    file = [weights_folder(DINO, weights) / weights.files[-1]] if there else []
    words = f"bilinear, antialiased, to {SIZE} x {SIZE}, mean {MEAN}, std {STD}"
    return Network("DINO ViT-B/8", file, words, fetch=DINO)


def _key_projection(model: ViTModel) -> nn.Module:
    """The last one in the model's order: that of the deepest layer."""
    return [module for name, module in model.named_modules() if name.rpartition(".")[2] in KEYS][-1]
