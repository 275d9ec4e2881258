"""What a metric is, what it scores, and how its scores are held against what it says. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from riebench.core.errors import UserError

if TYPE_CHECKING:
    import torch

    from riebench.edits.edit import Edit

#: How far a score may be beyond its metric's bounds: cosines of float32 unit vectors are 1 but for rounding.
BOUNDS_TOLERANCE = 1e-5


@dataclass(frozen=True)
class ScoreBatch:
    """Results to score, row by row.

    Raises `ValueError` when the shapes do not agree.
    """

    intervened: torch.Tensor
    """Intervened images, float `[b, 3, h, w]` in [0, 1]."""
    original: torch.Tensor
    """Original images from the same noise, as above."""
    edited: torch.Tensor
    """Edited images from the same noise, as above."""
    edits: Sequence[Edit]
    """The edit of each row."""
    outside: torch.Tensor
    """Bool `[b, h, w]`, True outside the dilated region."""
    regions: torch.Tensor
    """Bool `[b, 2, h, w]`: the region in the original and in the edited image, as they were found."""

    def __post_init__(self) -> None:
        b, channels, h, w = self.intervened.shape
        images = (b, channels, h, w)
        expected = {"original": images, "edited": images, "outside": (b, h, w), "regions": (b, 2, h, w)}
        for name, shape in expected.items():
            found = tuple(getattr(self, name).shape)
            if found != shape:
                raise ValueError(f"{name} is {found}, where the intervened images ask for {shape}")
        if channels != 3 or len(self.edits) != b:
            raise ValueError(f"{b} images of {channels} channels with {len(self.edits)} edits")


class Metric(Protocol):
    """One score of the intervened image.

    A metric may say more of itself, which is stored with its scores (`riebench.core.scores.Score`): `label`,
    `source`, `network`, `weights_sha256`, `preprocessing` (text), `needs` (a tuple of text), and `always`, whether no
    row is NaN. It is described without being used, so it had better load its networks in a method `load()`, which is
    called once before the first `score`.
    """

    name: str
    """The column of its scores."""
    higher_is_better: bool | None
    """None where it depends: an edit may be meant to leave the original prompt, or to keep to it."""
    bounds: tuple[float, float]
    """Least and greatest value; infinite for none."""
    summary: str
    """One line."""

    def score(self, batch: ScoreBatch) -> np.ndarray:
        """Returns float64 `[b]`; NaN for a row on which the score is not defined. No row depends on the others."""
        ...


def score_batch(metrics: Sequence[Metric], batch: ScoreBatch) -> dict[str, np.ndarray]:
    """Returns metric name -> float64 `[b]`.

    Raises `UserError` naming a metric that returns anything but one number a row, or, with the row's edit, one that is
    infinite or out of its bounds.
    """
    scores = {}
    for metric in metrics:
        values = np.asarray(metric.score(batch))
        if values.shape != (len(batch.edits),) or values.dtype != np.float64:
            raise UserError(
                f"metric {metric.name!r} returned {values.dtype} {list(values.shape)} for {len(batch.edits)} rows",
                remedy="score() returns float64, one number a row",
            )
        low, high = metric.bounds
        wrong = np.isinf(values) | (values < low - BOUNDS_TOLERANCE) | (values > high + BOUNDS_TOLERANCE)
        if wrong.any():
            row = int(wrong.argmax())
            raise UserError(
                f"metric {metric.name!r} returned {values[row]} for {batch.edits[row].id} (row {row}), which is not"
                f" within {low:g} and {high:g}",
                remedy="score() returns NaN where it is not defined; mend it or its bounds",
            )
        scores[metric.name] = values
    return scores
