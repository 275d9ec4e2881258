"""The difference of the regions' mean updates, at every cell of the original image's region (protocol §10)."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from riebench.generation.interventions import Addition, Intervention
from riebench.methods.method import Case, check_settings


@dataclass(frozen=True)
class RegionMeans:
    """Adds how far the mean updates of the two images' regions differ."""

    strength: float = 1.0
    window: str = "all"
    branch: Literal["cond", "uncond", "both"] = "both"
    name: str = "region-means"
    sites: ClassVar[str] = "block"
    uses_sae: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_settings(self)

    def plan(self, case: Case) -> Intervention:
        """Returns the intervention that adds m (mean_e,t - mean_o,t) `[C]` at every cell of the original image's
        region, at strength m."""
        additions = {}
        for site, original in case.original.items():
            cells_e, cells_o = case.edited_cells[site.block], case.original_cells[site.block]
            difference_tc = _mean(case.edited[site][:, cells_e]) - _mean(original[:, cells_o])
            values_tnc = (self.strength * difference_tc)[:, None].expand(-1, int(cells_o.sum()), -1)
            additions[site] = Addition(cells_o.nonzero().flatten(), values_tnc.contiguous())
        return Intervention(additions, window=self.window, branch=self.branch)


def _mean(rows_tnc: Tensor) -> Tensor:
    """Returns the mean over the cells, `[steps, C]`."""
    return rows_tnc.mT.contiguous().mean(-1)
