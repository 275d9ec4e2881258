"""Random SAE features with the same count, the same activations and the same injected norm as the `sae` method's.

What `sae` gains over this is due to which features it chose, and not to how hard it pushed.
"""

from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor

from riebench.core.errors import UserError
from riebench.core.values import Range
from riebench.generation.interventions import Addition, Intervention
from riebench.methods.method import Case
from riebench.methods.transport import Transport, select_features, transport


class Shuffled:
    """A dictionary whose features decode through other features' directions."""

    def __init__(self, dictionary, generator: torch.Generator) -> None:
        self.encoder, self.num_features, self.width = dictionary, dictionary.num_features, dictionary.width
        self.order = torch.randperm(self.num_features, generator=generator)

    def encode(self, x_nd):
        """Returns the dictionary's own features `[n, F]` of rows `[n, C]`."""
        return self.encoder.encode(x_nd)

    def decode_linear(self, z_nf):
        """Returns rows `[n, C]` of features `[n, F]`, each in another feature's direction, without bias."""
        shuffled = torch.empty_like(z_nf)
        shuffled[:, self.order] = z_nf
        return self.encoder.decode_linear(shuffled)

    def directions(self, numbers):
        """Returns the directions `[k, C]` that features of k numbers decode through here."""
        return self.encoder.directions(self.order[numbers.cpu()])


@dataclass(frozen=True)
class RandomFeatures(Transport):
    """Moves what `sae` would, in random directions. Raises `UserError` for another mode than static."""

    k: Annotated[int, Range(1)] = 32
    pool: Literal["", "block", "all"] = ""
    aggregation: Literal["first", "mean"] = "first"
    name: str = "random"
    sites: ClassVar[str] = "block"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mode != "static":
            raise UserError(
                f"random features cannot be moved in mode {self.mode!r}", remedy="use static: only its norm is known"
            )

    def plan(self, case: Case) -> Intervention:
        """Returns the intervention of `sae` with its features' directions shuffled by the case's seed, scaled at each
        site to the L2 norm of what `sae` adds there."""
        saes = {site: case.sae(site.block) for site in case.original}
        selected = select_features(case, saes, k=self.k, pool=self.pool, aggregation=self.aggregation)
        target = transport(case, saes, selected, self)
        generator = torch.Generator().manual_seed(case.seed)
        shuffled = {site: Shuffled(sae, generator) for site, sae in saes.items()}
        plan = transport(case, shuffled, selected, self)
        scaled = {}
        for site, added in plan.additions.items():
            num_cells = case.original[site].shape[1]
            norm, wanted = _norm(added, num_cells), _norm(target.additions[site], num_cells)
            scaled[site] = replace(added, values=added.values * (wanted / norm)) if norm > 0 else added
        return replace(plan, additions=scaled, chosen={})


def _norm(added: Addition, num_cells: int) -> Tensor:
    """Returns the L2 norm of an addition, summed channel by channel, in float32: squares overflow in float16."""
    return added.dense(num_cells).mT.contiguous().float().norm()
