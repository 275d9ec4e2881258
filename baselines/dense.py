"""The whole update instead of selected features: the ceiling for a linear edit at these blocks and cells."""

from dataclasses import dataclass, replace
from typing import ClassVar

from riebench.generation.interventions import Intervention
from riebench.methods.method import Case
from riebench.methods.transport import Transport, everything, transport
from sae_models.dictionary import Identity


@dataclass(frozen=True)
class Dense(Transport):
    """Moves the whole update, as `Transport` says how."""

    name: str = "dense"
    sites: ClassVar[str] = "block"
    uses_sae: ClassVar[bool] = False

    def plan(self, case: Case) -> Intervention:
        """Returns the transport of every channel, which is turned on and off (protocol §6, "dense")."""
        dictionaries = {site: Identity(trace.shape[-1]) for site, trace in case.original.items()}
        how = replace(self, statistic=case.mode.dense_statistic or self.statistic)
        return transport(case, dictionaries, everything(dictionaries), how)
