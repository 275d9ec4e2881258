"""What the metrics of a CLIP have in common."""

from __future__ import annotations

from typing import Literal

from riebench.metrics.base import ScoreBatch
from riebench.metrics.networks.embeddings import Embeddings
from riebench.metrics.shared import SharedMetric

SIDES = ("original", "edited")
Side = Literal["original", "edited"]


class ClipMetric(SharedMetric):
    """A metric of one network of images and texts, which bears the network's name where it is not the family's own."""

    uses = ("clip",)
    base: str
    """Its name in the registry."""
    bounds = (-1.0, 1.0)

    @property
    def name(self) -> str:
        other = self.models.clip_name if self.uses == ("clip",) else ""
        return f"{self.base}@{other}" if other else self.base

    @property
    def embeddings(self) -> Embeddings:
        return self.models[self.uses[0]]


def prompts(batch: ScoreBatch, side: Side) -> list[str]:
    """Returns one side's prompt of each row."""
    return [getattr(edit, f"{side}_prompt") for edit in batch.edits]
