"""Structural similarity with the original image: whole, and outside the region.

The libraries' own are too slow for every result of a run: at 64 px torchmetrics takes 28 ms an image in the float64
that it needs here (28 times this), scikit-image 0.9 ms and one image at a time. Tests hold this to both.
"""

from __future__ import annotations

from functools import lru_cache, partial
from typing import TYPE_CHECKING

import numpy as np
import torch

from riebench.metrics.base import ScoreBatch
from riebench.metrics.shared import SharedMetric, mean_outside

if TYPE_CHECKING:
    from riebench.metrics.models import ScoringModels

SIGMA, REACH = 1.5, 5  # of the window: 11 x 11 pixels
C1, C2 = 0.01**2, 0.03**2  # for images in [0, 1]
AT_ONCE = 8  # images whose maps are in memory: ten of float64


class StructuralSimilarity(SharedMetric):
    """Mean of the map of structural similarity over pixels and channels; outside the region over the pixels there, NaN
    where there are none. A pixel's window reaches 5 px, so those near the region see some of it.

    Wang et al., "Image quality assessment: from error visibility to structural similarity", 2004, eq. 13, with its
    Gaussian window of 11 x 11 pixels and sigma 1.5; colours as scikit-image and torchmetrics take them, each channel
    by itself.
    """

    source = "Wang et al. 2004 (doi 10.1109/TIP.2003.819861)"
    higher_is_better = True
    bounds = (-1.0, 1.0)
    preprocessing = "none"

    def __init__(self, models: ScoringModels, *, outside: bool) -> None:
        super().__init__(models)
        self.outside, self.always = outside, not outside
        self.name = "ssim_outside" if outside else "ssim"
        self.label = "SSIM outside region" if outside else "SSIM to original"
        self.inputs = ("region",) if outside else ()

    def score(self, batch: ScoreBatch) -> np.ndarray:
        counted_bhw = batch.outside if self.outside else torch.ones_like(batch.outside)
        rows = counted_bhw.flatten(1).any(dim=1)
        scores = np.full(len(rows), np.nan)
        given = (tensor[rows].split(AT_ONCE) for tensor in (batch.intervened, batch.original, counted_bhw))
        found = [mean_outside(similarity_map(a, b).mean(dim=1), counted) for a, b, counted in zip(*given, strict=True)]
        scores[rows.cpu().numpy()] = np.concatenate(found)
        return scores


def similarity_map(a_bchw: torch.Tensor, b_bchw: torch.Tensor) -> torch.Tensor:
    """Returns the similarity around every pixel of images in [0, 1], float64 of their shape. Images go on beyond their
    edges in their mirror image, as in torchmetrics. Computed in float64: variances of flat areas are differences of
    nearly equal numbers, and float32 is wrong by up to 3e-4 there."""
    a, b = a_bchw.double(), b_bchw.double()
    mean_a, mean_b = blurred(a), blurred(b)
    covariance = blurred(a * b) - mean_a * mean_b
    variances = blurred(a.square() + b.square()) - mean_a.square() - mean_b.square()
    likeness = (2 * mean_a * mean_b + C1) * (2 * covariance + C2)
    return likeness / ((mean_a.square() + mean_b.square() + C1) * (variances + C2))


def blurred(images_bchw: torch.Tensor) -> torch.Tensor:
    """Returns images after the Gaussian window: a matrix to either side, of the same shape."""
    h, w = images_bchw.shape[-2:]
    rows, columns = (_window(size).to(images_bchw) for size in (h, w))
    return rows @ (images_bchw @ columns.T)


@lru_cache(maxsize=8)
def _window(size: int) -> torch.Tensor:
    """Returns float64 `[size, size]`: row i holds the weights of the pixels around pixel i along one axis.

    Raises `ValueError` for a size whose mirror image does not reach beyond the window.
    """
    if size <= REACH:
        raise ValueError(f"an image of {size} px is smaller than the window")
    offsets = torch.arange(-REACH, REACH + 1)
    weights = torch.exp(-offsets.double().square() / (2 * SIGMA**2))
    pixels = torch.arange(size)[:, None] + offsets
    mirrored = (size - 1) - ((size - 1) - pixels.abs()).abs()
    return torch.zeros(size, size, dtype=torch.float64).scatter_add(
        1, mirrored, (weights / weights.sum()).expand(size, -1)
    )


whole = partial(StructuralSimilarity, outside=False)
outside = partial(StructuralSimilarity, outside=True)
