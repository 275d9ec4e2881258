"""Mean squared error to the original image: whole, and outside the region."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch

from riebench.metrics.base import ScoreBatch
from riebench.metrics.shared import SharedMetric, mean_outside

if TYPE_CHECKING:
    from riebench.metrics.models import ScoringModels


class MeanSquaredError(SharedMetric):
    """Mean over pixels and channels of the squared difference, of images in [0, 1]; outside the region NaN where
    nothing is outside."""

    higher_is_better = False
    bounds = (0.0, 1.0)
    preprocessing = "none"

    def __init__(self, models: ScoringModels, *, outside: bool) -> None:
        super().__init__(models)
        self.outside, self.always = outside, not outside
        self.name = "mse_outside" if outside else "mse"
        self.label = "MSE outside region" if outside else "MSE to original"
        self.inputs = ("region",) if outside else ()

    def score(self, batch: ScoreBatch) -> np.ndarray:
        return mean_squared_error(batch, outside=self.outside)


def mean_squared_error(batch: ScoreBatch, *, outside: bool) -> np.ndarray:
    """Returns float64 `[b]`, as `MeanSquaredError` says."""
    errors_bhw = (batch.intervened - batch.original).square().mean(dim=1)
    return mean_outside(errors_bhw, batch.outside if outside else torch.ones_like(batch.outside))


whole = partial(MeanSquaredError, outside=False)
outside = partial(MeanSquaredError, outside=True)
