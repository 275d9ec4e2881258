"""Cosine of the image's change with the prompt's (protocol §7)."""

from __future__ import annotations

import numpy as np

from riebench.metrics.base import ScoreBatch
from riebench.metrics.clip import ClipMetric, prompts

#: L2 norm up to which the difference of two unit embeddings is rounding and has no direction. tinyworld's CLIP, in
#: float32, moves one picture by at most 3e-7 when other pictures share its batch, and by 8e-6 or more when a single
#: pixel changes by one of 255 levels; the weakest interventions of a run move it by 4e-3.
LEAST_CHANGE = 1e-5


class ClipDirectional(ClipMetric):
    """Cosine of E(intervened) - E(original) with T(edited) - T(original), E and T the unit embeddings of images and
    prompts; NaN where either change is no longer than `LEAST_CHANGE`, as it is for the original image itself.

    Gal et al., "StyleGAN-NADA: CLIP-Guided Domain Adaptation of Image Generators", 2021 (arXiv 2108.00946); as a
    score of edits Brooks et al., "InstructPix2Pix", 2022 (arXiv 2211.09800).
    """

    base = "clip_directional"
    inputs = ("prompts",)
    source = "Gal et al. 2021 (arXiv 2108.00946)"
    always = False
    higher_is_better = True

    def score(self, batch: ScoreBatch) -> np.ndarray:
        embed = self.embeddings
        image_be = embed.images(batch.intervened) - embed.images(batch.original)
        text_be = embed.texts(prompts(batch, "edited")) - embed.texts(prompts(batch, "original"))
        image_b, text_b = (np.linalg.norm(change_be, axis=1) for change_be in (image_be, text_be))
        defined = (image_b > LEAST_CHANGE) & (text_b > LEAST_CHANGE)
        cosine = (image_be * text_be).sum(axis=1)
        return np.divide(cosine, image_b * text_b, out=np.full(len(cosine), np.nan), where=defined)
