"""The difference of the regions' mean updates, at every cell of the original image's region (protocol §10)."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from riebench.generation.interventions import Intervention
from riebench.methods.method import Case


@dataclass(frozen=True)
class RegionMeans:
    strength: float = 1.0
    window: str = "all"
    branch: str = "both"
    name: str = "region-means"
    sites: str = "update"
    uses_sae: ClassVar[bool] = False

    def plan(self, case: Case) -> Intervention:
        additions = {}
        for site, original in case.original.items():
            cells_e, cells_o = case.edited_cells[site.block], case.original_cells[site.block]
            difference = case.edited[site][:, :, cells_e].mean(-1) - original[:, :, cells_o].mean(-1)
            additions[site] = torch.zeros_like(original)
            additions[site][:, :, cells_o] = self.strength * difference[:, :, None]
        return Intervention(additions, window=self.window, branch=self.branch)
