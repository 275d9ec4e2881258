"""Edit efficiency: how much edit a change of the image buys (protocol §7)."""

from __future__ import annotations

import math

import numpy as np

from riebench.core.scores import LEAST_COST
from riebench.metrics.base import ScoreBatch
from riebench.metrics.clip import prompts
from riebench.metrics.shared import SharedMetric


class EditEfficiency(SharedMetric):
    """The gain in the CLIP cosine with the edited prompt, from the original to the intervened image, divided by LPIPS
    between the two; withheld, NaN, where LPIPS is below `LEAST_COST`."""

    name, label = "edit_efficiency", "Edit efficiency"
    uses = ("clip", "lpips")
    inputs = ("prompts",)
    source = "protocol §7"
    always = False
    higher_is_better = True
    bounds = (-math.inf, math.inf)

    def score(self, batch: ScoreBatch) -> np.ndarray:
        clip = self.models["clip"]
        change_be = clip.images(batch.intervened) - clip.images(batch.original)
        gain = (change_be * clip.texts(prompts(batch, "edited"))).sum(axis=1)
        cost = self.models["lpips"].distance(batch.intervened, batch.original).double().numpy()
        return np.divide(gain, cost, out=np.full(len(gain), np.nan), where=cost >= LEAST_COST)
