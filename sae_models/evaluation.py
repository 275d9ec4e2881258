"""How well a dictionary codes a set of rows."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from riebench.errors import UserError
from sae_models.dictionary import Dictionary


@dataclass(frozen=True)
class Evaluation:
    """Over all rows x with reconstructions x_hat = decode(encode(x))."""

    num_rows: int
    explained_variance_pooled: float
    """1 - sum ||x - x_hat||^2 / sum ||x - mean(x)||^2."""
    explained_variance_mean: float
    """Mean over dimensions of 1 - Var(x - x_hat) / Var(x), as sdxl-unbox reports it; dimensions that never vary are
    left out. A constant error of reconstruction does not lower it."""
    l0: float
    """Mean number of latents other than zero."""
    dead_share: float
    """Share of the features that are zero on every row."""
    cosine: float
    """Mean cosine of x and x_hat."""


def evaluate(dictionary: Dictionary, rows_nd: Tensor, *, batch_size: int = 8_192) -> Evaluation:
    """Evaluates on rows `[n, d]`, which lie on the dictionary's device.

    Raises `UserError` for a wrong width, rows that are not finite, or rows that are all the same.
    """
    tally = Tally(dictionary)
    for batch_nd in rows_nd.split(batch_size):
        tally.add(batch_nd)
    return tally.evaluation()


class Tally:
    """An `Evaluation` of rows that come in batches, kept as sums in float64: memory does not grow with the rows.

    x is summed from the first row on, so the variance of a dimension that never varies is exactly zero.
    """

    def __init__(self, dictionary: Dictionary) -> None:
        self.dictionary = dictionary
        self._num_rows = 0
        self._origin_d = self._sum_d = self._square_d = self._residual_sum_d = self._residual_square_d = 0.0
        self._active_f = self._cosine = 0.0

    @torch.no_grad()
    def add(self, rows_nd: Tensor) -> Tensor:
        """Counts in rows `[n, d]`, on the dictionary's device, and returns their latents `[n, f]`.

        Raises `UserError` for a wrong width and for rows that are not finite.
        """
        if rows_nd.ndim != 2 or rows_nd.shape[1] != self.dictionary.width:
            raise UserError(
                f"the rows have shape {tuple(rows_nd.shape)}, the dictionary a width of {self.dictionary.width}",
                remedy="evaluate on rows of the block it was trained on",
            )
        if not bool(torch.isfinite(rows_nd).all()):
            raise UserError(
                "the rows to evaluate on hold NaN or infinite values", remedy="check how they were captured"
            )
        x_nd = rows_nd.float()
        z_nf = self.dictionary.encode(x_nd)
        x_hat_nd = self.dictionary.decode(z_nf)
        if self._num_rows == 0:
            self._origin_d = x_nd[:1].double().sum(0)
        shifted_nd, residual_nd = x_nd.double() - self._origin_d, (x_nd - x_hat_nd).double()
        self._num_rows += len(x_nd)
        self._sum_d += shifted_nd.sum(0)
        self._square_d += shifted_nd.pow(2).sum(0)
        self._residual_sum_d += residual_nd.sum(0)
        self._residual_square_d += residual_nd.pow(2).sum(0)
        self._active_f += (z_nf != 0).sum(0)
        self._cosine += cosine_similarity(x_nd, x_hat_nd, dim=1).sum(dtype=torch.float64)
        return z_nf

    def evaluation(self) -> Evaluation:
        """Raises `UserError` where all rows were the same, or none came."""
        count = max(1, self._num_rows)
        variance_d = torch.as_tensor(self._square_d - self._sum_d**2 / count) / count
        residual_variance_d = (self._residual_square_d - self._residual_sum_d**2 / count) / count
        varies_d = variance_d > 0
        if not bool(varies_d.any()):
            raise UserError(
                f"there is no variance to explain in {self._num_rows} row(s)", remedy="evaluate on more, different rows"
            )
        return Evaluation(
            num_rows=self._num_rows,
            explained_variance_pooled=float(1 - self._residual_square_d.sum() / (count * variance_d.sum())),
            explained_variance_mean=float((1 - residual_variance_d / variance_d)[varies_d].mean()),
            l0=float(self._active_f.sum() / count),
            dead_share=float((self._active_f == 0).double().mean()),
            cosine=float(self._cosine / count),
        )
