"""Feed-forward neurons (GEGLU outputs of every layer of a block) in place of SAE features (protocol §6)."""

from dataclasses import dataclass

from riebench.interventions import Intervention
from riebench.methods import Case
from riebench.transport import encode_regions, select_features, static_transport
from sae_models.dictionary import Identity


@dataclass(frozen=True)
class Neurons:
    strength: float = 1.0
    k: int = 64
    """Neurons turned on, and as many off, in each block (or over all blocks where pool is "all")."""
    pool: str = "block"
    steps: str = "first"
    name: str = "neurons"
    sites: str = "neurons"

    def plan(self, case: Case) -> Intervention:
        neurons = {site: Identity(trace.shape[1]) for site, trace in case.original.items()}
        encoded = encode_regions(case, neurons)
        selected = select_features(encoded, k=self.k, pool=self.pool, steps=self.steps, unit_norm=True)
        return static_transport(case, neurons, encoded, selected, self.strength)
