"""SAE features turned on (from the edited image) and off (from the original image), in their own places."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from riebench.core.values import Range
from riebench.generation.interventions import Intervention
from riebench.methods.method import Case
from riebench.methods.transport import Transport, select_features, transport


@dataclass(frozen=True)
class SAE(Transport):
    """Moves SAE features, as `Transport` says how."""

    k: Annotated[int, Range(1)] = 32
    """Features turned on, and as many off, in each block; over all blocks where pool is "all", as it is in reference
    mode."""
    pool: Literal["", "block", "all"] = ""
    aggregation: Literal["first", "mean"] = "first"
    """Features are chosen by their values at the "first" step, or by the "mean" over the steps."""
    name: str = "sae"
    sites: ClassVar[str] = "block"

    def plan(self, case: Case) -> Intervention:
        """Returns the transport of the k features with the highest and the k with the lowest scores (protocol §5)."""
        saes = {site: case.sae(site.block) for site in case.original}
        selected = select_features(case, saes, k=self.k, pool=self.pool, aggregation=self.aggregation)
        return transport(case, saes, selected, self)
