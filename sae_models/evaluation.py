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


@torch.no_grad()
def evaluate(dictionary: Dictionary, rows_nd: Tensor, *, batch_size: int = 8_192) -> Evaluation:
    """Evaluates on rows `[n, d]`, which lie on the dictionary's device. Sums are kept in float64.

    Raises `UserError` for a wrong width, rows that are not finite, or rows that are all the same.
    """
    if rows_nd.ndim != 2 or rows_nd.shape[1] != dictionary.width:
        raise UserError(
            f"the rows have shape {tuple(rows_nd.shape)}, the dictionary a width of {dictionary.width}",
            remedy="evaluate on rows of the block it was trained on",
        )
    batches = rows_nd.split(batch_size)
    if not all(bool(torch.isfinite(batch_nd).all()) for batch_nd in batches):
        raise UserError("the rows to evaluate on hold NaN or infinite values", remedy="check how they were captured")
    device, double = rows_nd.device, torch.float64
    mean_d = sum(batch_nd.sum(0, dtype=double) for batch_nd in batches) / max(1, len(rows_nd))
    square_d, residual_sum_d, residual_square_d = torch.zeros(3, dictionary.width, dtype=double, device=device)
    ever_active_f = torch.zeros(dictionary.num_features, dtype=torch.bool, device=device)
    num_active, cosine_sum = torch.zeros(2, dtype=double, device=device)
    for batch_nd in batches:
        x_nd = batch_nd.float()
        z_nf = dictionary.encode(x_nd)
        x_hat_nd = dictionary.decode(z_nf)
        active_nf = z_nf != 0
        residual_nd = (x_nd - x_hat_nd).double()
        square_d += (x_nd.double() - mean_d).pow(2).sum(0)
        residual_sum_d += residual_nd.sum(0)
        residual_square_d += residual_nd.pow(2).sum(0)
        ever_active_f |= active_nf.any(0)
        num_active += active_nf.sum()
        cosine_sum += cosine_similarity(x_nd, x_hat_nd, dim=1).sum()
    varies_d = square_d > 0
    if not bool(varies_d.any()):
        raise UserError(
            f"there is no variance to explain in {len(rows_nd)} row(s)", remedy="evaluate on more, different rows"
        )
    residual_centred_square_d = residual_square_d - residual_sum_d.pow(2) / len(rows_nd)
    return Evaluation(
        num_rows=len(rows_nd),
        explained_variance_pooled=float(1 - residual_square_d.sum() / square_d.sum()),
        explained_variance_mean=float((1 - residual_centred_square_d / square_d)[varies_d].mean()),
        l0=float(num_active / len(rows_nd)),
        dead_share=float((~ever_active_f).double().mean()),
        cosine=float(cosine_sum / len(rows_nd)),
    )
