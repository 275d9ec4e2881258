"""Dead features are brought back by an auxiliary loss, or by a new start."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag, normalize

from sae_models.settings import refuse_unless_positive, refuse_unless_whole
from sae_models.topk import top
from sae_models.weights import Weights

DEAD_AFTER = 10_000_000  # rows without it, after which a feature is dead, unless a setting says otherwise


class Revival:
    """A revival is a setting that says what is done for dead features, in each loss or at each report."""

    dead_after: int
    """A feature is dead when it was last active at least this many rows ago."""
    restarts: ClassVar[bool] = False
    """Whether `restart` does anything: the residuals are kept for it until the report."""

    def loss(self, weights: Weights, x_nd: Tensor, residual_snd: Tensor) -> Tensor | float:
        """Returns what the loss gains, `[S]`. residual_snd: what the whole code leaves of the rows, without a graph."""
        return 0.0

    def restart(
        self, weights: Weights, seeds: Sequence[int], residual_snd: Tensor, optimiser: torch.optim.Adam, step: int
    ) -> None:
        """Lets dead features start again, with what the optimiser knows of them. seeds: of the autoencoders."""


@dataclass(frozen=True)
class AuxK(Revival):
    """Has dead features code what the others leave, by an auxiliary loss (Gao et al. 2024, appendix A.2)."""

    k: int
    """Dead latents a row."""
    weight: float = 1 / 32
    """What the share of the residual's squares that the dead leave is multiplied by."""
    dead_after: int = DEAD_AFTER
    """A feature is dead when it was last active at least this many rows ago."""

    def __post_init__(self) -> None:
        refuse_unless_whole(self, "k", "dead_after")
        refuse_unless_positive(self, "weight")

    def loss(self, weights: Weights, x_nd: Tensor, residual_snd: Tensor) -> Tensor:
        """Returns `weight` times the share of the residual's squares that the k largest latents of the dead features
        leave, `[S]`; 0 where none is dead."""
        left = []
        for s, dead in enumerate(weights.dead):
            if len(dead) == 0:
                left.append(residual_snd.new_zeros(()))
                continue
            h_nf = (x_nd - weights.b_dec[s].detach()) @ weights.W_enc[s, dead].T + weights.b_enc[s, dead]
            values_nk, features_nk = top(h_nf, min(self.k, len(dead)))
            coded_nd = embedding_bag(features_nk, weights.W_dec[s, dead], per_sample_weights=values_nk, mode="sum")
            square = residual_snd[s].pow(2).sum().clamp_min(torch.finfo(coded_nd.dtype).tiny)
            left.append((residual_snd[s] - coded_nd).pow(2).sum() / square)
        return self.weight * torch.stack(left)


@dataclass(frozen=True)
class Restart(Revival):
    """Points dead features along residuals, at each report until the learning rate falls: quicker than AuxK where a
    training is short. (After the resampling of Bricken et al. 2023, "Towards Monosemanticity", which takes the rows.)
    """

    dead_after: int
    """A feature is dead when it was last active at least this many rows ago."""
    restarts: ClassVar[bool] = True

    def __post_init__(self) -> None:
        refuse_unless_whole(self, "dead_after")

    @torch.no_grad()
    def restart(
        self, weights: Weights, seeds: Sequence[int], residual_snd: Tensor, optimiser: torch.optim.Adam, step: int
    ) -> None:
        """Points dead features along residuals, drawn without repetition in proportion to their squares; their encoder
        is as long as the mean. In Adam they get the mean second moment: from zero their first steps would be three
        times too long."""
        for s, (seed, dead) in enumerate(zip(seeds, weights.dead, strict=True)):
            weight_n = residual_snd[s].pow(2).sum(1).cpu()
            dead = dead[: int((weight_n > 0).sum())]
            if len(dead) == 0:
                continue
            generator = torch.Generator().manual_seed(seed + step)
            drawn = torch.multinomial(weight_n, len(dead), generator=generator).to(dead.device)
            direction_fd = normalize(residual_snd[s, drawn], dim=-1)
            weights.W_dec[s, dead] = direction_fd
            weights.W_enc[s, dead] = direction_fd * weights.W_enc[s].norm(dim=-1).mean()
            weights.b_enc[s, dead] = 0
            weights.rows_since_active[s, dead] = 0
            for parameter in (weights.W_dec, weights.W_enc, weights.b_enc):
                moments = optimiser.state[parameter]
                moments["exp_avg"][s, dead] = 0
                moments["exp_avg_sq"][s, dead] = moments["exp_avg_sq"][s].mean()
