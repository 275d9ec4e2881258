"""Peak signal-to-noise ratio with the original image: whole, and outside the region."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from riebench.metrics.base import ScoreBatch
from riebench.metrics.mse import mean_squared_error
from riebench.metrics.shared import SharedMetric

if TYPE_CHECKING:
    from riebench.metrics.models import ScoringModels

MOST_DB = 100.0  # what images get that do not differ, or hardly: a score is finite


class PeakSignalToNoise(SharedMetric):
    """-10 log10 of the mean squared error of images in [0, 1], in dB, at most `MOST_DB`; outside the region NaN where
    nothing is outside. A single pixel that differs by one of 255 levels gives 89 dB at 64 px and the cap at 512 px."""

    source = "10 log10(1 / MSE)"
    higher_is_better = True
    bounds = (0.0, MOST_DB)
    preprocessing = "none"

    def __init__(self, models: ScoringModels, *, outside: bool) -> None:
        super().__init__(models)
        self.outside, self.always = outside, not outside
        self.name = "psnr_outside" if outside else "psnr"
        self.label = "PSNR outside region" if outside else "PSNR to original"
        self.inputs = ("region",) if outside else ()

    def score(self, batch: ScoreBatch) -> np.ndarray:
        errors = mean_squared_error(batch, outside=self.outside)
        return -10 * np.log10(np.maximum(errors, 10 ** (-MOST_DB / 10)))


whole = partial(PeakSignalToNoise, outside=False)
outside = partial(PeakSignalToNoise, outside=True)
