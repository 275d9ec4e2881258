"""Cosine of the intervened image with one of the case's two images (protocol §7)."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from riebench.metrics.base import ScoreBatch
from riebench.metrics.clip import ClipMetric, Side

if TYPE_CHECKING:
    from riebench.metrics.models import ScoringModels


class ImageCosine(ClipMetric):
    """Cosine of the intervened image's embedding with that of one side's image.

    Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", 2021 (arXiv 2103.00020).
    """

    source = "Radford et al. 2021 (arXiv 2103.00020)"
    always = True
    higher_is_better = True

    def __init__(self, models: ScoringModels, side: Side) -> None:
        super().__init__(models)
        self.side, self.base = side, f"clip_image_{side}"
        self.inputs = ("edited image",) if side == "edited" else ()

    def score(self, batch: ScoreBatch) -> np.ndarray:
        reference_be = self.embeddings.images(getattr(batch, self.side))
        return (self.embeddings.images(batch.intervened) * reference_be).sum(axis=1)


edited = partial(ImageCosine, side="edited")
original = partial(ImageCosine, side="original")
