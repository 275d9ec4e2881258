"""What the published code does otherwise than the strict protocol, and reference mode does as it does.

`docs/reference-mode.md` lists all of it, and which commits are followed. Source: the public code of RIEBench (arXiv
2410.22366).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from riebench.backbones.family import Site
from riebench.backbones.sdxl import PUBLISHED_ORDER
from riebench.methods.selection import Selected
from sae_models.dictionary import Dictionary


def select_published(
    edited: Mapping[Site, Tensor], original: Mapping[Site, Tensor], k: int, pool: str, aggregation: str, unit_norm: bool
) -> dict[Site, Selected]:
    """Returns on and off features of each site from features `[steps, cells, F]`, as the published code selects them.

    The sums under the score are of signed values, and may be near zero; where one unit is zero on every cell of a
    region, its 0/0 makes all scores NaN. Ties and NaN are sorted as `numpy.argsort` does.
    """
    blocks = sorted(
        {site.block for site in edited}, key=lambda block: (PUBLISHED_ORDER.get(block, len(PUBLISHED_ORDER)), block)
    )
    sites = sorted(edited, key=lambda site: (blocks.index(site.block), site.layer or 0))
    groups = [sites] if pool == "all" else [[s for s in sites if s.block == block] for block in blocks]
    chosen: dict[Site, Selected] = {}
    for group in filter(None, groups):
        mu_edited, mu_original = (
            torch.cat([_mean(side[site], aggregation, unit_norm) for site in group]) for side in (edited, original)
        )
        score = mu_edited / mu_edited.sum() - mu_original / mu_original.sum()
        order = torch.from_numpy(np.argsort(score.cpu().numpy()).copy())
        start = 0
        for site in group:
            stop = start + edited[site].shape[-1]
            parts = (order.flip(0)[:k], order[:k])
            chosen[site] = Selected(*(part[(part >= start) & (part < stop)] - start for part in parts))
            start = stop
    return {site: chosen[site] for site in edited}


def _mean(features_tnf: Tensor, aggregation: str, unit_norm: bool) -> Tensor:
    """Returns `[F]`: normalised over the cells at each step where asked, then the first step or the mean of all, then
    the mean over the cells."""
    if unit_norm:
        features_tnf = features_tnf.float() / features_tnf.float().norm(dim=1, keepdim=True)  # float16 overflows
    return (features_tnf[0] if aggregation == "first" else features_tnf.mean(dim=0)).mean(dim=0)


def norm_ratio(dictionary: Dictionary, on: Tensor, off: Tensor) -> float:
    """Returns the sum of the on features' decoder norms over that of the off features; 0 where there are none."""
    norms = [dictionary.directions(numbers).norm(dim=-1).sum() for numbers in (on, off)]
    return float(norms[0] / norms[1]) if norms[1] > 0 else 0.0
