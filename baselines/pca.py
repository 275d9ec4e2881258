"""Principal components of the updates in place of SAE features, as many of them (protocol §10).

The components are those of the case's own two traces, all cells and steps of a block: the best linear basis that these
images allow. What `sae` gains over it is due to its dictionary being sparse and learnt on other images.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch

from riebench.core.values import Range
from riebench.generation.interventions import Intervention
from riebench.methods.method import Case
from riebench.methods.transport import Transport, select_features, transport
from sae_models.pca import fit_pca

AT_ONCE = 8192  # rows that are looked at together, in float64


@dataclass(frozen=True)
class PrincipalComponents(Transport):
    """Moves principal components of the case's own updates, as `Transport` says how."""

    k: Annotated[int, Range(1)] = 32
    """Components turned on, and as many off, in each block; over all blocks where pool is "all", as it is in
    reference mode."""
    pool: Literal["", "block", "all"] = ""
    aggregation: Literal["first", "mean"] = "first"
    name: str = "pca"
    sites: ClassVar[str] = "block"
    uses_sae: ClassVar[bool] = False

    def plan(self, case: Case) -> Intervention:
        """Returns the transport of the k components with the highest and the k with the lowest scores (protocol §5)."""
        components = {
            site: fit_pca(torch.cat([side[site].flatten(0, 1) for side in (case.original, case.edited)]).split(AT_ONCE))
            for site in case.original
        }
        selected = select_features(case, components, k=self.k, pool=self.pool, aggregation=self.aggregation)
        return transport(case, components, selected, self)
