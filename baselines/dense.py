"""The whole update instead of selected features: the ceiling for a linear edit at these blocks and cells."""

from dataclasses import dataclass

from riebench.interventions import Intervention
from riebench.methods import Case
from riebench.transport import encode_regions, everything, static_transport
from sae_models.dictionary import Identity


@dataclass(frozen=True)
class Dense:
    strength: float = 1.0
    name: str = "dense"
    sites: str = "update"

    def plan(self, case: Case) -> Intervention:
        dictionaries = {site: Identity(trace.shape[1]) for site, trace in case.original.items()}
        encoded = encode_regions(case, dictionaries)
        return static_transport(case, dictionaries, encoded, everything(dictionaries), self.strength)
