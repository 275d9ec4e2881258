"""LPIPS (Zhang et al. 2018, v0.1) of the intervened image: whole, and outside the region."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from riebench.metrics.base import ScoreBatch
from riebench.metrics.clip import Side
from riebench.metrics.networks.lpips import ALEX, SQUEEZE, VGG, LpipsNetwork
from riebench.metrics.shared import SharedMetric, mean_outside

if TYPE_CHECKING:
    from riebench.metrics.models import ScoringModels
    from riebench.metrics.networks.lpips_distance import Lpips


class LpipsMetric(SharedMetric):
    """A distance of the intervened image by one of the networks.

    Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric", 2018 (arXiv 1801.03924).
    """

    source = "Zhang et al. 2018 (arXiv 1801.03924)"
    higher_is_better = False
    bounds = (0.0, math.inf)

    def __init__(self, models: ScoringModels, network: LpipsNetwork, kind: str) -> None:
        super().__init__(models)
        self.uses, self.name, self.label = (network.key,), f"{network.key}_{kind}", f"{network.label}, {kind}"

    @property
    def lpips(self) -> Lpips:
        return self.models[self.uses[0]]


class LpipsWhole(LpipsMetric):
    """LPIPS of the intervened image with one side's image."""

    always = True

    def __init__(self, models: ScoringModels, network: LpipsNetwork, side: Side) -> None:
        super().__init__(models, network, side)
        self.side = side
        self.inputs = ("edited image",) if side == "edited" else ()

    def score(self, batch: ScoreBatch) -> np.ndarray:
        return self.lpips.distance(batch.intervened, getattr(batch, self.side)).double().numpy()


class LpipsOutside(LpipsMetric):
    """Mean of the LPIPS map to the original image over the pixels outside the region; NaN where none is.

    The map's cells see some way into the region: at 64 px a pixel's deepest features see the whole image.
    """

    always = False
    inputs = ("region",)

    def __init__(self, models: ScoringModels, network: LpipsNetwork) -> None:
        super().__init__(models, network, "outside")

    def score(self, batch: ScoreBatch) -> np.ndarray:
        return mean_outside(self.lpips.distance_map(batch.intervened, batch.original), batch.outside.cpu())


original = partial(LpipsWhole, network=ALEX, side="original")
edited = partial(LpipsWhole, network=ALEX, side="edited")
outside = partial(LpipsOutside, network=ALEX)
vgg_original = partial(LpipsWhole, network=VGG, side="original")
vgg_edited = partial(LpipsWhole, network=VGG, side="edited")
vgg_outside = partial(LpipsOutside, network=VGG)
squeeze_original = partial(LpipsWhole, network=SQUEEZE, side="original")
squeeze_edited = partial(LpipsWhole, network=SQUEEZE, side="edited")
squeeze_outside = partial(LpipsOutside, network=SQUEEZE)
