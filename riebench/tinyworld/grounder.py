"""The grounder: finds the pixels of a tinyworld phrase, as GroundingDINO and SAM do for photographs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import torch
from torch import nn
from torch.nn import functional as F

from riebench.core.files import data_folder
from riebench.regions.grounders import grounder_settings
from riebench.tinyworld.nouns import CLASSES, NOUNS, phrase_noun
from riebench.tinyworld.weights import load_weights

MIN_PIXELS = 8  # a smaller mask is a speck, and becomes empty


def _conv(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


class Grounder(nn.Module):
    """A small U-shaped segmentation network. Images are `[b, 3, 64, 64]` in [0, 1]."""

    settings: Mapping[str, object] = MappingProxyType({})

    def __init__(self) -> None:
        super().__init__()
        self.down32 = _conv(3, 16, 5, 2)
        self.down16 = _conv(16, 32, 3, 2)
        self.down8 = nn.Sequential(_conv(32, 64, 3, 2), _conv(64, 64))
        self.up16 = nn.Conv2d(64, 32, 1)
        self.merge16 = _conv(32, 32)
        self.up32 = nn.Conv2d(32, 16, 1)
        self.merge32 = _conv(16, 24)
        self.head = nn.Sequential(nn.Conv2d(24, 4 * len(CLASSES), 3, padding=1), nn.PixelShuffle(2))

    def forward(self, images_bchw: torch.Tensor) -> torch.Tensor:
        """Returns logits `[b, 5, 64, 64]` of `CLASSES`."""
        at32 = self.down32(images_bchw * 2 - 1)
        at16 = self.down16(at32)
        at8 = self.down8(at16)
        at16 = self.merge16(at16 + F.interpolate(self.up16(at8), scale_factor=2, mode="bilinear"))
        at32 = self.merge32(at32 + F.interpolate(self.up32(at16), scale_factor=2, mode="bilinear"))
        return self.head(at32)

    @torch.no_grad()
    def detections(self, images_bchw: torch.Tensor, phrases: Sequence[tuple[str, ...]]) -> list[torch.Tensor]:
        """Returns the pixels of each image's nouns, bool `[n, 64, 64]`: a mask for each noun that is in the image.

        A noun may be a phrase, of which the last known noun decides (`NOUNS`). A mask below `MIN_PIXELS` pixels is
        none. Raises `UserError` for a phrase without a known noun.
        """
        if len(phrases) != len(images_bchw):
            raise ValueError(f"{len(images_bchw)} images want as many phrases, got {len(phrases)}")
        covered = [
            torch.tensor([[name in NOUNS[phrase_noun(noun)] for name in CLASSES] for noun in nouns])
            for nouns in phrases
        ]
        classes = self(images_bchw).argmax(dim=1)
        masks = [rows.to(shown.device)[:, shown] for rows, shown in zip(covered, classes, strict=True)]
        return [found[found.sum(dim=(1, 2)) >= MIN_PIXELS] for found in masks]

    def masks(self, images_bchw: torch.Tensor, phrases: Sequence[str]) -> torch.Tensor:
        """Returns bool `[b, 64, 64]`: the pixels of one noun phrase an image, found as by `detections`, all False where
        it is not in the image."""
        found = self.detections(images_bchw, [(phrase,) for phrase in phrases])
        return torch.stack([masks.any(dim=0) for masks in found])


def load(device: torch.device | str = "cpu", **settings: object) -> Grounder:
    """Returns the shipped grounder, as `riebench.regions.grounders` lists it. Raises `UserError` for any
    setting."""
    grounder_settings("tinyworld", settings)
    return load_grounder(device)


def load_grounder(device: torch.device | str = "cpu", path: Path | None = None) -> Grounder:
    """Returns the shipped grounder, or the one saved at `path`. Raises `UserError` naming a missing or broken file."""
    return load_weights(Grounder(), path or data_folder() / "tinyworld" / "grounder.safetensors", device)
