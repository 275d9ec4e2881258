"""Input rows are normalised here before training, and that is folded into the weights afterwards."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from riebench.core.errors import UserError

KINDS = ("none", "mean", "scale", "whiten")
EIGENVALUE_FLOOR = 1e-4  # of the mean eigenvalue: directions that hardly vary are not blown up to noise


@dataclass(frozen=True)
class Normalisation:
    """An autoencoder is trained on y = (x - mean) M, of raw rows x.

    M is `scale` times the identity, or, whitening, `scale` times the eigenvectors over the roots of their eigenvalues.
    """

    mean_d: Tensor
    scale: float
    whitening_dd: Tensor | None = None
    """M, where it is more than a scale."""
    colouring_dd: Tensor | None = None
    """Its inverse."""

    @staticmethod
    def of(rows_nd: Tensor, kind: str) -> Normalisation:
        """Estimates a normalisation on raw rows, in float64.

        kind: "none"; "mean" (subtracted); "scale" (and one factor, so that the rms norm of a row is sqrt(d)); "whiten"
        (and all principal directions of equal variance, but for those below `EIGENVALUE_FLOOR` of the mean one).
        Raises `UserError` for another kind, and for rows that are all the same.
        """
        if kind not in KINDS:
            raise UserError(f"there is no normalisation {kind!r}", remedy=f"choose one of {', '.join(KINDS)}")
        x_nd = rows_nd.double()
        mean_d = x_nd.mean(0)
        centred_nd = x_nd - mean_d
        variance = centred_nd.pow(2).mean().item()
        if not variance > 0 or bool((rows_nd == rows_nd[0]).all()):
            raise UserError("the rows to train on are all the same", remedy="check how they were captured")
        if kind == "none":
            return Normalisation(torch.zeros_like(rows_nd[0]), 1.0)
        if kind == "mean":
            return Normalisation(mean_d.to(rows_nd.dtype), 1.0)
        if kind == "scale":
            return Normalisation(mean_d.to(rows_nd.dtype), variance**-0.5)
        eigenvalue_d, vector_dd = torch.linalg.eigh(centred_nd.T @ centred_nd / len(x_nd))
        root_d = eigenvalue_d.clamp_min(EIGENVALUE_FLOOR * variance).sqrt()
        return Normalisation(
            mean_d.to(rows_nd.dtype),
            1.0,
            (vector_dd / root_d).to(rows_nd.dtype),
            (root_d[:, None] * vector_dd.T).to(rows_nd.dtype),
        )

    def apply(self, rows_nd: Tensor) -> Tensor:
        """Returns y of raw rows `[n, d]`."""
        centred_nd = rows_nd - self.mean_d
        return centred_nd * self.scale if self.whitening_dd is None else centred_nd @ self.whitening_dd

    def fold(self, weights: dict[str, Tensor], *, rescale: bool) -> dict[str, Tensor]:
        """Returns the weights of the same autoencoder of raw rows: `W_enc` [d, f], `b_enc` [f], `W_dec` [f, d], `b_dec`
        [d], and `threshold` [f] where there is one.

        With h = (y - b_dec) W_enc + b_enc and y = (x - mean) M, the encoder is M W_enc, the decoder W_dec M^-1 and its
        bias b_dec M^-1 + mean; b_enc stays, and so do the latents. Decoder rows then have another norm. A scale gives
        all the same, which goes into the latents: they come out in the units of x, and rows have unit norm again.
        Whitening gives each row its own. rescale: latents take these up too. Not for TopK, where another scale for
        each feature would change which are the largest: there the rows stay as they are.
        """
        folded = dict(weights)
        if self.whitening_dd is None or self.colouring_dd is None:
            factor_f = torch.full_like(weights["b_enc"], 1 / self.scale)
            folded["b_dec"] = weights["b_dec"] / self.scale + self.mean_d
        else:
            folded["W_enc"] = self.whitening_dd @ weights["W_enc"]
            folded["W_dec"] = weights["W_dec"] @ self.colouring_dd
            folded["b_dec"] = weights["b_dec"] @ self.colouring_dd + self.mean_d
            factor_f = folded["W_dec"].norm(dim=-1) if rescale else torch.ones_like(weights["b_enc"])
            folded["W_enc"] = folded["W_enc"] * factor_f
            folded["W_dec"] = folded["W_dec"] / factor_f[:, None]
        folded["b_enc"] = weights["b_enc"] * factor_f
        if "threshold" in weights:
            folded["threshold"] = weights["threshold"] * factor_f
        return folded

    def state(self) -> dict[str, Tensor | float | None]:
        """Returns what `Normalisation(**state)` is made of again."""
        return vars(self).copy()


def geometric_median(rows_nd: Tensor, *, tolerance: float = 1e-7, max_iterations: int = 500) -> Tensor:
    """Returns the point `[d]` with the least sum of distances to the rows, in float64.

    Weiszfeld's iteration goes from the mean, and stops when a step is shorter than `tolerance` times the mean distance.
    (Weiszfeld 1937)"""
    rows_nd = rows_nd.double()
    median_d = rows_nd.mean(0)
    for _ in range(max_iterations):
        distance_n = (rows_nd - median_d).norm(dim=1)
        typical = distance_n.mean()
        if typical == 0:
            break
        weight_n = 1 / distance_n.clamp_min(1e-9 * typical)
        moved_d = weight_n @ rows_nd / weight_n.sum()
        shift = (moved_d - median_d).norm()
        median_d = moved_d
        if shift <= tolerance * typical:
            break
    return median_d
