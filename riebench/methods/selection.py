"""Which features go on and off (protocol §5)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from riebench.backbones.family import Site
from riebench.core.errors import UserError

ROUNDING = 1e-5  # of the largest share of a feature in its group: smaller scores are what float32 leaves of zero


@dataclass(frozen=True)
class Selected:
    """Feature numbers of one site: turned on (from the edited image's trace) and off (from the original's)."""

    on: Tensor
    off: Tensor

    @property
    def count(self) -> int:
        """The number of features turned on and off."""
        return len(self.on) + len(self.off)


def mean_features(features_tnf: Tensor, aggregation: str = "first", unit_norm: bool = False) -> Tensor:
    """Returns mu `[F]`: features `[steps, cells, F]` aggregated over steps, then averaged over cells.

    aggregation: "first" or "mean". unit_norm: divide each unit by its L2 norm over the cells first, as for neurons.
    """
    if aggregation not in ("first", "mean"):
        raise UserError(f"unknown aggregation over steps {aggregation!r}", remedy="use 'first' or 'mean'")
    z_tnf = features_tnf[:1] if aggregation == "first" else features_tnf
    if unit_norm:
        z_tnf = z_tnf.float() / z_tnf.float().norm(dim=1, keepdim=True).clamp_min(1e-12)  # float16 overflows
    return z_tnf.mean(dim=(0, 1))


def select(
    mu_edited: Mapping[Site, Tensor], mu_original: Mapping[Site, Tensor], k: int, pool: str = "block"
) -> dict[Site, Selected]:
    """Returns the features with the k highest and k lowest of score_i = mu_e,i / sum|mu_e| - mu_o,i / sum|mu_o|.

    pool "block": sums and k are each block's own (all sites of a block together), the setting on which blocks may be
    compared; pool "all": over all blocks, where the blocks' scales decide. The sums are of absolute values, which for
    SAE features, never negative, is the published sum, and for neurons cannot pass through zero. Scores below
    `ROUNDING` of the group's largest mu / sum|mu| are zero, and equal scores go by number (`on` from the lowest, `off`
    from the highest): where both traces are the same, as before the block at which an edit's words enter, it is not
    the order of a sum that decides.
    """
    if pool not in ("block", "all"):
        raise UserError(f"unknown pool {pool!r}", remedy="use 'block' or 'all'")
    if k < 1:
        raise UserError(f"k = {k} selects no feature", remedy="use k of at least 1")
    groups: dict[str, list[Site]] = {}
    for site in mu_edited:
        groups.setdefault(site.block if pool == "block" else "", []).append(site)
    chosen: dict[Site, Selected] = {}
    for sites in groups.values():
        chosen |= _select_group(sites, mu_edited, mu_original, k)
    return {site: chosen[site] for site in mu_edited}


def _select_group(sites: list[Site], mu_edited, mu_original, k: int) -> dict[Site, Selected]:
    shares = torch.stack([_shares(sites, mu) for mu in (mu_edited, mu_original)])
    score = shares[0] - shares[1]
    score = score.where(score.abs() > ROUNDING * shares.abs().max(), 0)
    order = torch.argsort(score, descending=True, stable=True)
    k = min(k, len(order) // 2)
    on, off = order[:k], order.flip(0)[:k]
    chosen, start = {}, 0
    for site in sites:
        stop = start + len(mu_edited[site])
        inside = [part[(part >= start) & (part < stop)] - start for part in (on, off)]
        chosen[site] = Selected(*(part.sort().values for part in inside))
        start = stop
    return chosen


def _shares(sites: list[Site], mu: Mapping[Site, Tensor]) -> Tensor:
    joined = torch.cat([mu[site] for site in sites])
    return joined / joined.abs().sum().clamp_min(1e-12)
