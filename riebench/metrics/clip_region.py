"""Cosine of what is in a region with the region's phrase (protocol §7)."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch

from riebench.edits.phrases import parse_phrase
from riebench.metrics.base import ScoreBatch
from riebench.metrics.clip import SIDES, ClipMetric, Side

if TYPE_CHECKING:
    from riebench.metrics.models import ScoringModels

GROWN = 0.15  # of the box's height and width, to each side


class RegionCosine(ClipMetric):
    """Cosine of the intervened image's crop around one side's region with that side's region phrase.

    The crop is the region's bounding box, grown by 15 % of its height and width to each side and clipped to the image;
    it is resized as the network's whole images are. NaN where the phrase names nothing that could be seen in a crop
    (`everything`, `background`, `not X`, a mask of one's own), and where the region is empty.
    """

    inputs = ("region", "prompts")
    source = "protocol §7"
    always = False

    def __init__(self, models: ScoringModels, side: Side) -> None:
        super().__init__(models)
        self.side, self.base = side, f"clip_region_{side}"
        self.label = f"CLIP, {side} region"
        self.higher_is_better = True if side == "edited" else None

    def score(self, batch: ScoreBatch) -> np.ndarray:
        phrases = [phrase_text(getattr(edit, f"{self.side}_region")) for edit in batch.edits]
        boxes = crop_boxes(batch.regions[:, SIDES.index(self.side)])
        shown = {i: box for i, (phrase, box) in enumerate(zip(phrases, boxes, strict=True)) if phrase and box}
        scores = np.full(len(phrases), np.nan)
        if shown:
            images_be = self.embeddings.crops([batch.intervened[i, :, high, wide] for i, (high, wide) in shown.items()])
            scores[list(shown)] = (images_be * self.embeddings.texts([phrases[i] for i in shown])).sum(axis=1)
        return scores


def phrase_text(region: str) -> str:
    """Returns what a region phrase names, for a text encoder; "" where it names nothing. Raises `UserError` for a
    phrase that cannot be read."""
    phrase = parse_phrase(region)
    return "" if phrase.complement else " and ".join(phrase.nouns)


def crop_boxes(regions_bhw: torch.Tensor) -> list[tuple[slice, slice] | None]:
    """Returns for each region (bool) the rows and columns of its crop; None for an empty one."""
    regions = regions_bhw.cpu().numpy()
    spans = [_spans(regions.any(axis=axis)) for axis in (2, 1)]
    return [(rows, columns) if rows and columns else None for rows, columns in zip(*spans, strict=True)]


def _spans(covered_bn: np.ndarray) -> list[slice | None]:
    """Returns for each row the span from the first to the last True, grown."""
    size = covered_bn.shape[1]
    found = []
    for covered, first, last in zip(
        covered_bn.any(axis=1), covered_bn.argmax(axis=1), size - 1 - covered_bn[:, ::-1].argmax(axis=1), strict=True
    ):
        more = round(GROWN * (int(last) + 1 - int(first)))
        found.append(slice(max(int(first) - more, 0), min(int(last) + 1 + more, size)) if covered else None)
    return found


edited = partial(RegionCosine, side="edited")
original = partial(RegionCosine, side="original")
