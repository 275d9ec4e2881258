"""Scoring: from the pictures of a case and an intervened image to a row of scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from riebench.core.batches import halving
from riebench.edits.edit import Edit
from riebench.metrics import ScoreBatch, default_metrics, score_batch, scorers
from riebench.regions.grounding import dilate

OUTSIDE_PX, OUTSIDE_REFERENCE_PX = 12, 512  # how far the region is dilated before "outside" begins (protocol §7)


@dataclass(frozen=True)
class Pictures:
    """What all results of a case are compared with. Images are `[3, h, w]` in [0, 1], of 8 bits, as written."""

    original: Tensor
    edited: Tensor
    regions: Tensor
    """Bool `[2, h, w]`: the region in the original and in the edited image."""

    @property
    def outside(self) -> Tensor:
        """Bool `[h, w]`: pixels outside both regions, dilated."""
        pixels = round(OUTSIDE_PX * self.regions.shape[-2] / OUTSIDE_REFERENCE_PX)
        return ~dilate(self.regions.any(dim=0)[None], pixels)[0]


def eight_bits(image_chw: Tensor) -> Tensor:
    """A float image in [0, 1] as it is after it was written and read. What is scored is what is written."""
    return (image_chw.clamp(0, 1) * 255).round() / 255


class Scorer:
    """Metrics of a family of backbones, on a device: those of the names given, or the family's `default_metrics`.

    Raises `UserError` for a name that is unknown or not for the family, and where weights are missing.
    """

    def __init__(
        self, family: str, device: torch.device | str, *, keep_marks: bool = False, names: Sequence[str] = ()
    ) -> None:
        self.names = tuple(names) or default_metrics(family)
        self.device = device
        self._metrics = scorers(self.names, family, device, keep_marks=keep_marks)

    def score(self, rows: Sequence[tuple[Edit, Pictures, Tensor]]) -> list[dict[str, float]]:
        """Metric -> value for each (edit, pictures of the case, intervened image `[3, h, w]`). Rows do not depend on
        one another. Where memory runs out, fewer are scored at once."""
        if not rows:
            return []
        found, _ = halving(lambda size: self._score(rows, size), len(rows), "scoring")
        return found

    def _score(self, rows: Sequence[tuple[Edit, Pictures, Tensor]], size: int) -> list[dict[str, float]]:
        found = []
        for start in range(0, len(rows), size):
            edits, pictures, images = zip(*rows[start : start + size], strict=True)
            batch = ScoreBatch(
                intervened=torch.stack(images).to(self.device),
                original=torch.stack([picture.original for picture in pictures]).to(self.device),
                edited=torch.stack([picture.edited for picture in pictures]).to(self.device),
                edits=edits,
                outside=torch.stack([picture.outside for picture in pictures]).to(self.device),
                regions=torch.stack([picture.regions for picture in pictures]).to(self.device),
            )
            columns = score_batch(self._metrics, batch)
            found += [{name: float(values[i]) for name, values in columns.items()} for i in range(len(edits))]
        return found
