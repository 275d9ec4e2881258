"""A dictionary is measured here: how well it codes a set of rows, and how its decoder directions lie."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from riebench.core.errors import UserError
from sae_models.dictionary import Dictionary

RARE_ROWS = 10_000  # a rare feature is active on fewer than one row in so many
DENSE_ROWS = 10  # a dense feature on more than one row in so many (SAEBench, Karvonen et al. 2025, arXiv 2503.09532)
#: What a `Tally` sums up, beside the number of rows.
SUMS = ("origin_d", "sum_d", "square_d", "residual_sum_d", "residual_square_d", "mass_f", "active_f", "cosine")
CHUNK_ROWS = 1_024  # decoder directions that are compared with all others at once


@dataclass(frozen=True)
class Evaluation:
    """These are measures over all rows x with reconstructions x_hat = decode(encode(x))."""

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
    fvu_pooled: float
    """Fraction of variance unexplained: sum ||x - x_hat||^2 / sum ||x - mean(x)||^2."""
    rare_share: float | None
    """Share of the features that are active on some row, but on fewer than one in 10,000; None of no more rows than
    that, which cannot tell. Dead ones are not among them."""
    dense_share: float
    """Share of the features that are active on more than a tenth of the rows."""
    utilisation: float
    """exp(H) / f, with H the entropy of p_f, the share that feature f has in the sum of all |z|: 1 where all features
    carry as much, 1 / f where one carries all, 0 where none is active. exp(H) is the effective number of features
    (Hill 1973, of order 1), the perplexity of a codebook."""


def evaluate(dictionary: Dictionary, rows_nd: Tensor, *, batch_size: int = 8_192) -> Evaluation:
    """Evaluates on rows `[n, d]`, which lie on the dictionary's device.

    Raises `UserError` for a wrong width, rows that are not finite, or rows that are all the same.
    """
    tally = Tally(dictionary)
    for batch_nd in rows_nd.split(batch_size):
        tally.add(batch_nd)
    return tally.evaluation()


class Tally:
    """This counts for an `Evaluation` of rows that come in batches; it keeps sums, so memory does not grow with them.

    x is summed from the first row on, so the variance of a dimension that never varies is exactly zero.
    """

    def __init__(self, dictionary: Dictionary) -> None:
        self.dictionary = dictionary
        self._num_rows = 0
        nothing = torch.zeros((), dtype=torch.float64)
        self._origin_d = self._sum_d = self._square_d = self._residual_sum_d = self._residual_square_d = nothing
        self._mass_f = self._cosine = nothing
        self._active_f = torch.zeros(())

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
        self._sum_d = self._sum_d + shifted_nd.sum(0)
        self._square_d = self._square_d + shifted_nd.pow(2).sum(0)
        self._residual_sum_d = self._residual_sum_d + residual_nd.sum(0)
        self._residual_square_d = self._residual_square_d + residual_nd.pow(2).sum(0)
        self._active_f = self._active_f + (z_nf != 0).sum(0)
        self._mass_f = self._mass_f + z_nf.abs().sum(0, dtype=torch.float64)
        self._cosine = self._cosine + cosine_similarity(x_nd, x_hat_nd, dim=1).sum(dtype=torch.float64)
        return z_nf

    def state(self) -> dict[str, Tensor]:
        """Returns all that was counted, as `restore` takes it."""
        return {"num_rows": torch.tensor(self._num_rows), **{name: getattr(self, f"_{name}") for name in SUMS}}

    def restore(self, state: Mapping[str, Tensor], device: torch.device | str = "cpu") -> None:
        """Goes on from what another tally of the same dictionary counted, to the bit. device: the dictionary's."""
        self._num_rows = int(state["num_rows"])
        for name in SUMS:
            setattr(self, f"_{name}", state[name].to(device))

    def merge(self, other: Tally) -> None:
        """Counts in the rows of another tally of the same dictionary."""
        if self._num_rows == 0:
            self._origin_d = other._origin_d
        shift_d = other._origin_d - self._origin_d
        moved_d = other._square_d + 2 * shift_d * other._sum_d + other._num_rows * shift_d**2
        self._square_d = self._square_d + moved_d
        self._sum_d = self._sum_d + (other._sum_d + other._num_rows * shift_d)
        for name in ("_num_rows", "_residual_sum_d", "_residual_square_d", "_active_f", "_mass_f", "_cosine"):
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def evaluation(self) -> Evaluation:
        """Returns what was counted. Raises `UserError` where all rows were the same, or none came."""
        count = max(1, self._num_rows)
        variance_d = (self._square_d - self._sum_d**2 / count) / count
        residual_variance_d = (self._residual_square_d - self._residual_sum_d**2 / count) / count
        varies_d = variance_d > 0
        if not bool(varies_d.any()):
            raise UserError(
                f"there is no variance to explain in {self._num_rows} row(s)", remedy="evaluate on more, different rows"
            )
        rare_f = (self._active_f > 0) & (self._active_f * RARE_ROWS < count)
        return Evaluation(
            num_rows=self._num_rows,
            explained_variance_pooled=float(1 - self._residual_square_d.sum() / (count * variance_d.sum())),
            explained_variance_mean=float((1 - residual_variance_d / variance_d)[varies_d].mean()),
            l0=float(self._active_f.sum() / count),
            dead_share=float((self._active_f == 0).double().mean()),
            cosine=float(self._cosine / count),
            fvu_pooled=float(self._residual_square_d.sum() / (count * variance_d.sum())),
            rare_share=float(rare_f.double().mean()) if count > RARE_ROWS else None,
            dense_share=float((self._active_f * DENSE_ROWS > count).double().mean()),
            utilisation=_utilisation(self._mass_f),
        )


def _utilisation(mass_f: Tensor) -> float:
    """Returns exp of the entropy of masses, over their number."""
    if not bool(mass_f.any()):
        return 0.0
    share_f = mass_f / mass_f.sum()
    return float(torch.special.entr(share_f).sum().exp() / len(share_f))


@dataclass(frozen=True)
class Geometry:
    """This says how the decoder directions of a dictionary lie to one another, whatever rows it codes. A direction is a
    row of `decoder_rows`, scaled to norm 1; where a row is zero, its cosine with others is 0."""

    coherence: float
    """The greatest |cosine| of two different directions (mutual coherence, Donoho & Elad 2003); 0 of one feature."""
    nearest_cosine: float
    """Mean over the features of the greatest |cosine| with another direction; 0 of one feature."""
    least_norm: float
    """The least norm of a decoder row."""
    greatest_norm: float
    """The greatest norm of a decoder row."""


@torch.no_grad()
def decoder_rows(dictionary: Dictionary, device: torch.device | str = "cpu") -> Tensor:
    """Returns what each feature adds for a latent of one, `[f, d]`. device: the dictionary's.

    Raises `UserError` for a dictionary without features.
    """
    count = dictionary.num_features
    if count == 0:
        raise UserError("a dictionary without features has no directions", remedy="use one with at least one feature")
    chunks = []
    for start in range(0, count, CHUNK_ROWS):
        numbers = torch.arange(start, min(start + CHUNK_ROWS, count), device=device)
        one_hot_nf = torch.zeros(len(numbers), count, device=device)
        one_hot_nf[torch.arange(len(numbers), device=device), numbers] = 1
        chunks.append(dictionary.decode_linear(one_hot_nf))
    return torch.cat(chunks)


@torch.no_grad()
def geometry(dictionary: Dictionary, device: torch.device | str = "cpu") -> Geometry:
    """Compares all pairs of directions, a part of them at a time. device: the dictionary's.

    Raises `UserError` for a dictionary without features.
    """
    rows_fd = decoder_rows(dictionary, device).float()
    directions_fd = normalize(rows_fd, dim=1)
    nearest = []
    for start in range(0, len(rows_fd), CHUNK_ROWS):
        cosine_nf = (directions_fd[start : start + CHUNK_ROWS] @ directions_fd.T).abs()
        cosine_nf.diagonal(start).zero_()  # each with itself
        nearest.append(cosine_nf.amax(dim=1))
    nearest_f, norm_f = torch.cat(nearest).clamp(max=1).double(), rows_fd.double().norm(dim=1)
    return Geometry(float(nearest_f.max()), float(nearest_f.mean()), float(norm_f.min()), float(norm_f.max()))
