"""The networks that metrics share, each loaded when a metric first asks for it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch

from riebench.errors import UserError, did_you_mean
from riebench.metrics.remembered import BATCH_SIZE, Remembered

if TYPE_CHECKING:
    from riebench.metrics.clip import Embeddings
    from riebench.metrics.lpips import LpipsAlex

FAMILIES = ("tinyworld", "sdxl")
OPENAI_CLIP = "ViT-L-14-quickgelu/openai"  # plain ViT-L-14 runs the wrong activation on those weights


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

    def __post_init__(self) -> None:
        if self.family not in FAMILIES:
            raise UserError(
                f"no metrics for backbones of the family {self.family!r}{did_you_mean(self.family, FAMILIES)}",
                remedy=f"use one of {', '.join(FAMILIES)}",
            )

    @cached_property
    def clip(self) -> Embeddings:
        from riebench.metrics.clip import Embeddings

        if self.family == "tinyworld":
            from riebench.tinyworld.clip import load_clip

            return Embeddings(load_clip(self.device), self.device, self.keep_marks, self.batch_size)
        from riebench.metrics.openclip import OpenClip

        return Embeddings(OpenClip(OPENAI_CLIP, self.device), self.device, self.keep_marks, self.batch_size)

    @cached_property
    def lpips(self) -> LpipsAlex:
        from riebench.metrics.lpips import LpipsAlex

        return LpipsAlex(self.device, self.batch_size)

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

    def forget(self) -> None:
        """Forgets every image and prompt that was read, of the networks loaded so far."""
        for name in ("clip", "lpips", "attributes"):
            if name in vars(self):
                getattr(self, name).forget()
