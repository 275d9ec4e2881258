"""Random SAE features with the same count, the same activations and the same injected norm as the `sae` method's.

What `sae` gains over this is due to which features it chose, and not to how hard it pushed.
"""

from dataclasses import dataclass

import torch

from riebench.interventions import Intervention
from riebench.methods import Case
from riebench.transport import encode_regions, select_features, static_transport


class Shuffled:
    """A dictionary whose features decode through other features' directions."""

    def __init__(self, dictionary, generator: torch.Generator) -> None:
        self.dictionary, self.num_features, self.width = dictionary, dictionary.num_features, dictionary.width
        self.order = torch.randperm(self.num_features, generator=generator)

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
        saes = {site: case.sae(site.block) for site in case.original}
        encoded = encode_regions(case, saes)
        selected = select_features(encoded, k=self.k, pool=self.pool, steps=self.steps)
        target = static_transport(case, saes, encoded, selected, self.strength)
        generator = torch.Generator().manual_seed(case.seed)
        shuffled = {site: Shuffled(sae, generator) for site, sae in saes.items()}
        plan = static_transport(case, shuffled, encoded, selected, self.strength)
        scaled = {}
        for site, value in plan.additions.items():
            norm = value.norm()
            scaled[site] = value * (target.additions[site].norm() / norm) if norm > 0 else value
        return Intervention(scaled, target.features)
