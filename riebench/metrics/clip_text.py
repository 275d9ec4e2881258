"""Cosine of the intervened image with a prompt (protocol §7)."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from riebench.metrics.base import ScoreBatch
from riebench.metrics.clip import ClipMetric, Side, prompts

if TYPE_CHECKING:
    from riebench.metrics.models import ScoringModels


class TextCosine(ClipMetric):
    """Cosine of the intervened image's embedding with that of one side's prompt.

    Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", 2021 (arXiv 2103.00020);
    as a score, without its factor of 2.5 and its floor at 0, Hessel et al., "CLIPScore", 2021 (arXiv 2104.08718).
    """

    inputs = ("prompts",)
    source = "Hessel et al. 2021 (arXiv 2104.08718)"
    always = True

    def __init__(self, models: ScoringModels, side: Side) -> None:
        super().__init__(models)
        self.side, self.base = side, f"clip_text_{side}"
        self.higher_is_better = True if side == "edited" else None

    def score(self, batch: ScoreBatch) -> np.ndarray:
        reference_be = self.embeddings.texts(prompts(batch, self.side))
        return (self.embeddings.images(batch.intervened) * reference_be).sum(axis=1)


edited = partial(TextCosine, side="edited")
original = partial(TextCosine, side="original")
