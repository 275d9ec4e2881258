"""A grounder that finds the whole image, whatever it is asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from riebench.regions.grounders import grounder_settings


class Everything:
    """Is a `riebench.regions.grounders.Grounder`."""

    settings: Mapping[str, object] = {}

    def detections(self, images_bchw: Tensor, phrases: Sequence[tuple[str, ...]]) -> list[Tensor]:
        """Returns one full mask an image, bool `[1, h, w]`."""
        full = torch.ones(1, *images_bchw.shape[-2:], dtype=torch.bool, device=images_bchw.device)
        return [full for _ in phrases]


def load(device: torch.device | str = "cpu", **settings: object) -> Everything:
    """Returns the grounder, which needs no weights. Raises `UserError` for any setting: it has none."""
    grounder_settings("everything", settings)
    return Everything()
