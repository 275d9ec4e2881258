"""Scoring: from the pictures of a case and an intervened image to a row of scores."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from riebench.core.batches import halving
from riebench.edits.edit import Edit
from riebench.generation.sharing import twin_of
from riebench.metrics import ScoreBatch, default_metrics, score_batch, scorers
from riebench.metrics.networks.base import BATCH_SIZE
from riebench.metrics.networks.remembered import known_contents
from riebench.runs.pictures import Pictures

FEW = 4  # pictures made at once, up to which they are judged one by one: batches are filled up to `BATCH_SIZE`


class Scorer:
    """Scores by metrics of a family of backbones, on a device: those of the names given, or the family's
    `default_metrics`.

    Raises `UserError` for a name that is unknown or not for the family, and where weights are missing.
    """

    def __init__(
        self,
        family: str,
        device: torch.device | str,
        *,
        keep_marks: bool = False,
        names: Sequence[str] = (),
        batch_size: int = 0,
    ) -> None:
        """batch_size: how many pictures are made at once, 0 for many; where it is few, each is judged alone."""
        self.names = tuple(names) or default_metrics(family)
        self.device = device
        size = 1 if 0 < batch_size <= FEW else BATCH_SIZE
        self._metrics = scorers(self.names, family, device, keep_marks=keep_marks, batch_size=size)

    def twin(self) -> Scorer:
        """Returns another scorer of the same networks, for another thread, which remembers no picture yet."""
        other = twin_of(self)
        for metric in other._metrics:
            if hasattr(metric, "models"):
                metric.models.forget()
        return other

    def score(
        self, rows: Sequence[tuple[Edit, Pictures, Tensor]], digests: Sequence[bytes] = ()
    ) -> list[dict[str, float]]:
        """Returns metric -> value for each (edit, pictures of the case, intervened image `[3, h, w]`). Rows do not
        depend on one another. Where memory runs out, fewer are scored at once.

        digests: of the intervened images, where they are of 8 bits and known (`riebench.core.pictures.picture_digest`).
        """
        if not rows:
            return []
        found, _ = halving(lambda size: self._score(rows, digests, size), len(rows), "scoring")
        return found

    def _score(
        self, rows: Sequence[tuple[Edit, Pictures, Tensor]], digests: Sequence[bytes], size: int
    ) -> list[dict[str, float]]:
        found = []
        for start in range(0, len(rows), size):
            edits, pictures, images = zip(*rows[start : start + size], strict=True)
            intervened, original, edited, outside, regions = (
                torch.stack(list(parts)).to(self.device)
                for parts in (
                    images,
                    *([getattr(p, name) for p in pictures] for name in ("original", "edited", "outside", "regions")),
                )
            )
            known_contents(original, [picture.digests["original"] for picture in pictures])
            known_contents(edited, [picture.digests["edited"] for picture in pictures])
            if digests:
                known_contents(intervened, digests[start : start + size])
            columns = score_batch(self._metrics, ScoreBatch(intervened, original, edited, edits, outside, regions))
            found += [{name: float(values[i]) for name, values in columns.items()} for i in range(len(edits))]
        return found
