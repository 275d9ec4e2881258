"""The pictures that all results of a case are compared with."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from riebench.core.pictures import picture_digest, to_array
from riebench.regions.masks import dilate

OUTSIDE_PX, OUTSIDE_REFERENCE_PX = 12, 512  # how far the region is dilated before "outside" begins (protocol §7)


@dataclass(frozen=True)
class Pictures:
    """Holds what all results of a case are compared with. Images are `[3, h, w]` in [0, 1], of 8 bits, as written."""

    original: Tensor
    edited: Tensor
    regions: Tensor
    """Bool `[2, h, w]`: the region in the original and in the edited image."""

    @cached_property
    def outside(self) -> Tensor:
        """The pixels outside both regions, dilated; bool `[h, w]`."""
        pixels = round(OUTSIDE_PX * self.regions.shape[-2] / OUTSIDE_REFERENCE_PX)
        return ~dilate(self.regions.any(dim=0)[None], pixels)[0]

    @cached_property
    def digests(self) -> dict[str, bytes]:
        """What tells the original and the edited image from other pictures (`picture_digest`)."""
        return {side: picture_digest(to_array(getattr(self, side))) for side in ("original", "edited")}

    def to(self, device: torch.device) -> Pictures:
        """Returns the same on a device; itself where it is there."""
        if self.original.device == device:
            return self
        return Pictures(self.original.to(device), self.edited.to(device), self.regions.to(device))
