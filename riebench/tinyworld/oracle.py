"""The oracle: reads a picture's eight attributes and its layout back, so that an edit's success is a fact."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from riebench.core.files import data_folder
from riebench.tinyworld.scenes import ATTRIBUTES, PLACES, SIZES, VALUES
from riebench.tinyworld.weights import load_weights

#: What the oracle reads -> how many values it has: the attributes in the order of `ATTRIBUTES`, then the layout.
NUM_VALUES = {name: len(values) for name, values in VALUES.items()} | {"place": len(PLACES), "size": len(SIZES)}


def _conv(inputs: int, outputs: int, kernel: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


class Oracle(nn.Module):
    """A small convolutional network with one classifier per attribute. Images are `[b, 3, 64, 64]` in [0, 1]."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            _conv(3, 24, 5, 2), _conv(24, 48, 3, 2), _conv(48, 96, 3, 2), _conv(96, 96, 3, 1), _conv(96, 24, 1, 1)
        )
        self.hidden = nn.Linear(24 * 8 * 8, 128)
        self.heads = nn.Linear(128, sum(NUM_VALUES.values()))

    def forward(self, images_bchw: torch.Tensor) -> dict[str, torch.Tensor]:
        """Returns logits `[b, n]` of every attribute, and of "place" and "size"."""
        features = self.features(images_bchw * 2 - 1).flatten(1)
        logits = self.heads(F.relu(self.hidden(features))).split(list(NUM_VALUES.values()), dim=1)
        return dict(zip(NUM_VALUES, logits, strict=True))

    @torch.no_grad()
    def predict(self, images_bchw: torch.Tensor) -> dict[str, torch.Tensor]:
        """Returns probabilities `[b, n]` of the values of every attribute, and of "place" and "size"."""
        return {name: logits.softmax(dim=1) for name, logits in self(images_bchw).items()}

    def attributes(self, images_bchw: torch.Tensor) -> torch.Tensor:
        """Returns the most probable attribute indices, int64 `[b, 8]`, columns as in `scenes.VALUES`."""
        return self._most_probable(images_bchw, ATTRIBUTES)

    def layouts(self, images_bchw: torch.Tensor) -> torch.Tensor:
        """Returns the most probable layout indices, int64 `[b, 2]`: place, size."""
        return self._most_probable(images_bchw, ("place", "size"))

    def _most_probable(self, images_bchw: torch.Tensor, names: tuple[str, ...]) -> torch.Tensor:
        probabilities = self.predict(images_bchw)
        return torch.stack([probabilities[name].argmax(dim=1) for name in names], dim=1)


def load_oracle(device: torch.device | str = "cpu", path: Path | None = None) -> Oracle:
    """Returns the shipped oracle, or the one saved at `path`. Raises `UserError` naming a missing or broken file."""
    return load_weights(Oracle(), path or data_folder() / "tinyworld" / "oracle.safetensors", device)
