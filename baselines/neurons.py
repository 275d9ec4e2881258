"""Feed-forward neurons of every layer of a block in place of SAE features (protocol §6)."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from riebench.backbones.family import Site
from riebench.core.values import Range
from riebench.generation.interventions import Intervention
from riebench.methods.method import Case
from riebench.methods.selection import Selected
from riebench.methods.transport import Transport, select_features, transport
from sae_models.dictionary import Identity


@dataclass(frozen=True)
class Neurons(Transport):
    """Moves feed-forward neurons, as `Transport` says how."""

    k: Annotated[int, Range(1)] = 64
    """Neurons turned on, and as many off, in each block; over all blocks where pool is "all", as it is in reference
    mode."""
    pool: Literal["", "block", "all"] = ""
    aggregation: Literal["first", "mean"] = "first"
    name: str = "neurons"
    sites: ClassVar[str] = "neurons"
    uses_sae: ClassVar[bool] = False

    def select(self, case: Case) -> dict[Site, Selected]:
        """Returns the k neurons with the highest and the k with the lowest scores (protocol §5), each divided by its L2
        norm over the cells before it is scored."""
        key = self, tuple(case.widths)
        if key not in case.latents:  # asked when they are to be read, and again when they are moved
            how = {"k": self.k, "pool": self.pool, "aggregation": self.aggregation}
            case.latents[key] = select_features(case, self._neurons(case), **how, unit_norm=True)
        return case.latents[key]

    def plan(self, case: Case) -> Intervention:
        """Returns the transport of the neurons that `select` chooses."""
        return transport(case, self._neurons(case), self.select(case), self)

    def _neurons(self, case: Case) -> dict[Site, Identity]:
        return {site: Identity(width) for site, width in case.widths.items()}
