"""The networks that metrics share, each loaded when a metric first asks for it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch

from riebench.core.errors import UserError, did_you_mean
from riebench.core.files import data_folder, read_json
from riebench.metrics.remembered import BATCH_SIZE, Remembered
from riebench.metrics.weights import OPENAI_CLIP, SIGLIP2, Network

if TYPE_CHECKING:
    from riebench.metrics.clip import Embeddings
    from riebench.metrics.lpips import Lpips
    from riebench.metrics.openclip import Preprocessing

FAMILIES = ("tinyworld", "sdxl")


@dataclass(frozen=True)
class ScoringModels:
    """Which networks score. Raises `UserError` for an unknown family of backbones."""

    family: str = "tinyworld"
    """Family of the backbone: it decides which CLIP scores, and whether there is an oracle."""
    device: torch.device | str = "cpu"
    """Where the networks run; images may come from anywhere."""
    keep_marks: bool = False
    """Whether prompts keep their `[ ]` marks."""
    batch_size: int = BATCH_SIZE
    """Images and prompts that a network reads at once; fewer are filled up, so that a score does not depend on them."""
    clip_name: str = ""
    """"architecture/weights" of the open_clip model in the place of the family's CLIP; "" for the family's."""

    def __post_init__(self) -> None:
        if self.family not in FAMILIES:
            raise UserError(
                f"no metrics for backbones of the family {self.family!r}{did_you_mean(self.family, FAMILIES)}",
                remedy=f"use one of {', '.join(FAMILIES)}",
            )

    @cached_property
    def clip(self) -> Embeddings:
        if self.family == "tinyworld" and not self.clip_name:
            from riebench.metrics.clip import Embeddings
            from riebench.tinyworld.clip import load_clip

            resize = _tinyworld_preprocessing().resize
            return Embeddings(load_clip(self.device), self.device, self.keep_marks, self.batch_size, resize)
        return self._open_clip(self.clip_name or OPENAI_CLIP)

    @cached_property
    def siglip2(self) -> Embeddings:
        return self._open_clip(SIGLIP2)

    @cached_property
    def lpips(self) -> Lpips:
        return self._lpips("alex")

    @cached_property
    def lpips_vgg(self) -> Lpips:
        return self._lpips("vgg")

    @cached_property
    def lpips_squeeze(self) -> Lpips:
        return self._lpips("squeeze")

    @cached_property
    def dino(self) -> Remembered:
        """Key self-similarity: images -> (cosines, `[b, n, n]`,)."""
        from riebench.metrics.structure import load_dino

        return Remembered(load_dino(self.device), self.device, self.batch_size)

    @cached_property
    def attributes(self) -> Remembered:
        """The oracle's reading: images -> (attribute indices, int64 `[b, 8]`,).

        Raises `UserError` for a family other than tinyworld.
        """
        from riebench.tinyworld.oracle import load_oracle

        if self.family != "tinyworld":
            raise UserError(
                f"the oracle reads tinyworld's pictures, not those of {self.family}",
                remedy="leave oracle_success and oracle_preservation out",
            )
        oracle = load_oracle(self.device)
        return Remembered(lambda images: (oracle.attributes(images),), self.device, self.batch_size)

    def network(self, name: str) -> Network:
        """What is known of one of the networks above, which is not loaded for it."""
        if name.startswith("lpips"):
            from riebench.metrics.lpips import network

            return network(name.partition("_")[2] or "alex")
        if name == "dino":
            from riebench.metrics.structure import network

            return network()
        tinyworld = data_folder() / "tinyworld"
        if name == "attributes":
            return Network("tinyworld's oracle", [tinyworld / "oracle.safetensors"], "none")
        if name == "clip" and self.family == "tinyworld" and not self.clip_name:
            weights = tinyworld / "clip" / "open_clip_model.safetensors"
            return Network("tinyworld's CLIP", [weights], str(_tinyworld_preprocessing()))
        from riebench.metrics.openclip import network

        return network(SIGLIP2 if name == "siglip2" else self.clip_name or OPENAI_CLIP)

    def forget(self) -> None:
        """Forgets every image and prompt that was read, of the networks loaded so far."""
        for loaded in vars(self).values():
            if hasattr(loaded, "forget"):
                loaded.forget()

    def _open_clip(self, name: str) -> Embeddings:
        from riebench.metrics.clip import Embeddings
        from riebench.metrics.openclip import OpenClip

        encoder = OpenClip(name, self.device)
        return Embeddings(encoder, self.device, self.keep_marks, self.batch_size, encoder.preprocessing.resize)

    def _lpips(self, net: str) -> Lpips:
        from riebench.metrics.lpips import Lpips

        return Lpips(net, self.device, self.batch_size)


def _tinyworld_preprocessing() -> Preprocessing:
    """As tinyworld's CLIP says of itself, where open_clip would read it."""
    from riebench.metrics.openclip import Preprocessing

    file = data_folder() / "tinyworld" / "clip" / "open_clip_config.json"
    config = read_json(file, "the configuration of tinyworld's CLIP")
    return Preprocessing.from_config(
        config["preprocess_cfg"] | {"size": config["model_cfg"]["vision_cfg"]["image_size"]}
    )
