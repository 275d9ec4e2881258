"""What metrics of shared networks have in common: how they load them, and what they say of them without loading."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch

from riebench.metrics.table import METRICS, split_name

if TYPE_CHECKING:
    import numpy as np

    from riebench.metrics.models import ScoringModels


class SharedMetric:
    """A metric of networks out of `ScoringModels`, or of the pictures alone."""

    name: str
    uses: tuple[str, ...] = ()
    """Keys of its networks in `ScoringModels`."""
    inputs: tuple[str, ...] = ()
    """What it cannot be had without beside weights: "region", "prompts", "edited image", "oracle"."""
    source: ClassVar[str] = ""

    def __init__(self, models: ScoringModels) -> None:
        self.models = models

    def load(self) -> None:
        """Loads its networks. Raises `UserError` where weights are missing."""
        for name in self.uses:
            self.models[name]

    @property
    def summary(self) -> str:
        return METRICS.summary(split_name(self.name)[0])

    @property
    def needs(self) -> tuple[str, ...]:
        return (*self.inputs, *(weights for name in self.uses if (weights := self.models.describe(name).fetch)))

    @property
    def network(self) -> str:
        return "; ".join(self.models.describe(name).name for name in self.uses)

    @property
    def weights_sha256(self) -> str:
        return "; ".join(self.models.describe(name).weights_sha256 for name in self.uses)

    @property
    def preprocessing(self) -> str:
        marks = ("prompts keep their [ ]",) if "prompts" in self.inputs and self.models.keep_marks else ()
        return "; ".join((*(self.models.describe(name).preprocessing for name in self.uses), *marks))


def mean_outside(values_bhw: torch.Tensor, outside_bhw: torch.Tensor) -> np.ndarray:
    """Returns float64 `[b]`: the mean over the pixels outside, NaN where there are none."""
    values, outside = values_bhw.double(), outside_bhw.to(values_bhw.device)
    return ((values * outside).sum(dim=(1, 2)) / outside.sum(dim=(1, 2))).cpu().numpy()
