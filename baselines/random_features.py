"""Random SAE features with the same count, the same activations and the same injected norm as the `sae` method's.

What `sae` gains over this is due to which features it chose, and not to how hard it pushed.
"""

from dataclasses import dataclass, replace

import torch

from baselines.sae import SAE
from riebench.interventions import Intervention
from riebench.methods import Case


class Shuffled:
    """A dictionary whose features decode through other features' directions."""

    def __init__(self, dictionary, generator: torch.Generator) -> None:
        self.dictionary, self.num_features, self.width = dictionary, dictionary.num_features, dictionary.width
        self.order = torch.randperm(self.num_features, generator=generator)

    def encode(self, x_nd):
        return self.dictionary.encode(x_nd)

    def decode_linear(self, z_nf):
        shuffled = torch.empty_like(z_nf)
        shuffled[:, self.order] = z_nf
        return self.dictionary.decode_linear(shuffled)


@dataclass(frozen=True)
class RandomFeatures:
    strength: float = 1.0
    k: int = 32
    pool: str = "block"
    steps: str = "first"
    name: str = "random"
    sites: str = "update"

    def plan(self, case: Case) -> Intervention:
        sae = SAE(self.strength, self.k, self.pool, self.steps)
        target = sae.plan(case)
        generator = torch.Generator().manual_seed(case.seed)
        shuffled = {site.block: Shuffled(case.sae(site.block), generator) for site in case.original}
        plan = sae.plan(replace(case, sae=shuffled.__getitem__))
        scaled = {}
        for site, value in plan.additions.items():
            norm = value.norm()
            scaled[site] = value * (target.additions[site].norm() / norm) if norm > 0 else value
        return Intervention(scaled, target.features)
