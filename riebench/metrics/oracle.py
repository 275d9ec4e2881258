"""What tinyworld's oracle reads in the intervened image: did the edit happen, and did the rest stay."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from riebench.edits.edit import strip_marks
from riebench.metrics.base import ScoreBatch
from riebench.metrics.shared import SharedMetric
from riebench.tinyworld.captions import parse

if TYPE_CHECKING:
    from riebench.edits.edit import Edit


def _wanted(edits: Sequence[Edit]) -> tuple[np.ndarray, np.ndarray]:
    """Returns the edited scenes' attribute indices, int64 `[b, 8]`, and which the edit changes, bool `[b, 8]`."""
    original, edited = (
        np.array([parse(strip_marks(getattr(edit, f"{side}_prompt"))).indices() for edit in edits])
        for side in ("original", "edited")
    )
    return edited, original != edited


class _OracleMetric(SharedMetric):
    """A share, read by the oracle."""

    uses = ("attributes",)
    inputs = ("prompts", "oracle")
    source = "docs/tinyworld.md"
    higher_is_better = True
    bounds = (0.0, 1.0)

    def _read(self, images_bchw: torch.Tensor) -> np.ndarray:
        """Returns the attribute indices, int64 `[b, 8]`."""
        return self.models["attributes"](images_bchw)[0].cpu().numpy()


class OracleSuccess(_OracleMetric):
    """1.0 where every attribute that differs between the prompts reads as in the edited one, else 0.0; NaN where none
    differs. Raises `UserError` for a prompt outside tinyworld's grammar."""

    name = "oracle_success"

    def score(self, batch: ScoreBatch) -> np.ndarray:
        wanted, changed = _wanted(batch.edits)
        right = (self._read(batch.intervened) == wanted) | ~changed
        return np.where(changed.any(axis=1), right.all(axis=1), np.nan)


class OraclePreservation(_OracleMetric):
    """Share of the attributes that the edit leaves alone which read the same in the intervened and the original image;
    NaN where the edit changes all. Raises `UserError` for a prompt outside tinyworld's grammar."""

    name = "oracle_preservation"

    def score(self, batch: ScoreBatch) -> np.ndarray:
        _, changed = _wanted(batch.edits)
        same = self._read(batch.intervened) == self._read(batch.original)
        left_alone = (~changed).sum(axis=1)
        return np.where(left_alone > 0, (same & ~changed).sum(axis=1) / np.maximum(left_alone, 1), np.nan)
