"""SAE features turned on (from the edited image) and off (from the original image), in their own places."""

from dataclasses import dataclass

from riebench.interventions import Intervention
from riebench.methods import Case
from riebench.transport import encode_regions, select_features, static_transport


@dataclass(frozen=True)
class SAE:
    strength: float = 1.0
    k: int = 32
    """Features turned on, and as many off, in each block (or over all blocks where pool is "all")."""
    pool: str = "block"
    steps: str = "first"
    name: str = "sae"
    sites: str = "update"

    def plan(self, case: Case) -> Intervention:
        saes = {site: case.sae(site.block) for site in case.original}
        encoded = encode_regions(case, saes)
        selected = select_features(encoded, k=self.k, pool=self.pool, steps=self.steps)
        return static_transport(case, saes, encoded, selected, self.strength)
