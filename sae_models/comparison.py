"""Dictionaries are compared with one another here, and so are the active features of two latents."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from riebench.core.errors import UserError
from sae_models.dictionary import Dictionary
from sae_models.evaluation import decoder_rows

SHARED_COSINE = 0.7  # a feature is said to be found again where its partner's direction is nearer than this


@dataclass(frozen=True)
class Stability:
    """This says how far two dictionaries, of two seeds say, have the same decoder directions, each matched with one.

    The matching is the one with the greatest sum of cosines (the Hungarian method), as Paulo & Belrose 2025 (arXiv
    2501.16615) compare seeds; its mean is the stability of Fel et al. 2025 (arXiv 2502.12892). Of dictionaries that
    differ in size, all features of the smaller one are matched. A direction and its opposite are not the same.
    """

    cosine: float
    """Mean cosine of the matched directions: 1 for the same dictionary, in any order of its features."""
    shared_share: float
    """Share of the matched pairs with a cosine above 0.7."""


def stability(a: Dictionary, b: Dictionary, device: torch.device | str = "cpu") -> Stability:
    """Matches the directions of two dictionaries; the same comes of (b, a), but where several matchings are the best.

    device: that of both dictionaries.

    Raises `UserError` where their rows differ in width.
    """
    from scipy.optimize import linear_sum_assignment

    if a.width != b.width:
        raise UserError(
            f"directions of {a.width} and of {b.width} values cannot be compared",
            remedy="compare dictionaries of one block",
        )
    a_fd, b_fd = (normalize(decoder_rows(each, device).double(), dim=1) for each in (a, b))
    cosine_ff = (a_fd @ b_fd.T).cpu().numpy()
    matched = cosine_ff[linear_sum_assignment(cosine_ff, maximize=True)]
    return Stability(float(matched.mean()), float((matched > SHARED_COSINE).mean()))


def active_overlap(before_nf: Tensor, after_nf: Tensor) -> Tensor:
    """Returns the Jaccard index `[n]` of the active features of two latents: how many are active in both, over how many
    are in either; 0 where none is. Latents `[n, f]`."""
    before, after = before_nf != 0, after_nf != 0
    return (before & after).sum(-1) / (before | after).sum(-1).clamp(min=1)
