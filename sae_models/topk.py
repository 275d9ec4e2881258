"""This is the TopK sparse autoencoder (Gao et al. 2024, arXiv 2406.04093), for inference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from riebench.core.errors import UserError
from sae_models.autoencoder import Autoencoder
from sae_models.settings import refuse_unless_whole


@dataclass(frozen=True)
class TopKConfig:
    """This is the shape of a `TopKSAE`. Raises `UserError` where no such autoencoder exists."""

    width: int
    """d: the number of values in an input row."""
    num_features: int
    """f: the number of latents."""
    k: int
    """The most latents that may be active on a row."""
    kind: ClassVar[str] = "topk"
    """What a checkpoint and an index call it."""

    def __post_init__(self) -> None:
        refuse_unless_whole(self, "width", "num_features", "k")
        if self.k > self.num_features:
            raise UserError(
                f"k={self.k} is more than the {self.num_features} features there are",
                remedy="lower k or raise num_features",
            )

    def sae(self) -> TopKSAE:
        """Returns an autoencoder of this shape, with random weights."""
        return TopKSAE(self)


GROUP = 8  # features a group in `top`


def top(h_nf: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Returns relu of the k largest values of each row, and their feature numbers: both `[n, k]`, in no order.

    On a CPU the k groups of `GROUP` features with the largest maxima are taken first. They hold the k largest values,
    since a group with a larger one among them has a larger maximum too. At 5,120 features that takes 0.65 of the time
    for k=10 and 0.6 for k=160.
    """
    groups = h_nf.shape[-1] // GROUP
    if h_nf.device.type != "cpu" or groups < 2 * k or h_nf.shape[-1] % GROUP:
        values_nk, features_nk = h_nf.topk(k, dim=-1, sorted=False)
        return values_nk.relu(), features_nk
    h_ngf = h_nf.unflatten(-1, (GROUP, groups))  # a group is every `groups`-th feature: maxima are of whole vectors
    best_nk = h_ngf.amax(-2).topk(k, dim=-1, sorted=False).indices
    candidates = h_ngf.gather(-1, best_nk.unsqueeze(-2).expand(*h_ngf.shape[:-1], k)).flatten(-2)
    values_nk, places_nk = candidates.topk(k, dim=-1, sorted=False)
    return values_nk.relu(), best_nk.gather(-1, places_nk % k) + places_nk // k * groups


def keep_top(h_nf: Tensor, k: int) -> Tensor:
    """Returns relu of the k largest values of each row, zero elsewhere; the shape stays."""
    values_nk, features_nk = top(h_nf, k)
    return torch.zeros_like(h_nf).scatter(-1, features_nk, values_nk)


class TopKSAE(Autoencoder):
    """It computes z = relu(topk(h)), with h and x_hat as in `Autoencoder`.

    The rows of `W_dec` have unit norm, or nearly so where others trained it, so a latent is in the units of the input.
    """

    def __init__(self, config: TopKConfig, *, seed: int = 0) -> None:
        super().__init__(config.width, config.num_features, seed)
        self.config = config

    def encode(self, x_nd: Tensor) -> Tensor:
        return keep_top(self.preactivations(x_nd), self.config.k)
