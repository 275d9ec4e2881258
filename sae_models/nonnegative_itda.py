"""This is ITDA as arXiv 2505.24360 fits it to FLUX, after arXiv 2505.17769: rows are normalised, latents not negative.

It differs from `itda` in what it reads, (x - mean) / std of each channel instead of x; in its latents, none of which is
below zero; and in what of a row counts as unexplained: ||x' - x_hat'||^2 of the normalised row, over the mean of
||x'||^2 of all rows instead of the row's own. The authors' code adds at once all rows of a batch that the atoms before
the batch leave unexplained; here a row is held against all atoms before itself, so that two alike rows give one atom.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from riebench.core.errors import UserError
from sae_models.itda import EXACT, best_step, grow, refuse_steps
from sae_models.pca import load_decoder, refuse_rows, save_decoder

KIND = "nonnegative-itda"


@dataclass(frozen=True)
class NonNegativeITDA:
    """NonNegativeITDA computes z = nonnegative pursuit of (x - mean) / std in k steps, x_hat = std (z A) + mean.

    Inputs are cast to the atoms' dtype. Raises `UserError` for a k below 1 and a std that is not above zero.
    """

    atoms_fd: Tensor
    """A: `[f, d]`, rows of unit norm, of normalised rows."""
    mean_d: Tensor
    """`[d]`."""
    std_d: Tensor
    """`[d]`, above zero."""
    k: int
    """Steps of the pursuit, and so the most latents that may be active on a row."""

    def __post_init__(self) -> None:
        refuse_steps(self.k)
        if not bool((self.std_d > 0).all()):
            raise UserError("a standard deviation to divide by is not above zero", remedy="use 1 for channels at rest")

    @property
    def width(self) -> int:
        return self.atoms_fd.shape[1]

    @property
    def num_features(self) -> int:
        return len(self.atoms_fd)

    def encode(self, x_nd: Tensor) -> Tensor:
        normalised_nd = (x_nd.to(self.atoms_fd.dtype) - self.mean_d) / self.std_d
        return nonnegative_pursuit(normalised_nd, self.atoms_fd, self.k)

    def decode(self, z_nf: Tensor) -> Tensor:
        return self.decode_linear(z_nf) + self.mean_d

    def decode_linear(self, z_nf: Tensor) -> Tensor:
        return z_nf @ self.atoms_fd * self.std_d

    def directions(self, numbers: Tensor) -> Tensor:
        return self.atoms_fd[numbers.to(self.atoms_fd.device)] * self.std_d

    def save(self, folder: Path, metadata: dict[str, Any]) -> str:
        """Saves as `pca.save_decoder` does: W_dec is A, b_dec the mean, std as it is."""
        tensors = {"W_dec": self.atoms_fd, "b_dec": self.mean_d, "std": self.std_d}
        return save_decoder(folder, KIND, tensors, {"k": self.k}, metadata)

    @classmethod
    def load(cls, folder: Path, *, device: str | torch.device = "cpu") -> NonNegativeITDA:
        """Loads as `pca.load_decoder` does; also raises `UserError` where k or std cannot be."""
        more = {"b_dec": ("d_in",), "std": ("d_in",)}
        tensors, config = load_decoder(folder, KIND, more, ("k",), device=device)
        return cls(tensors["W_dec"], tensors["b_dec"], tensors["std"], config["k"])


@torch.no_grad()
def nonnegative_pursuit(x_nd: Tensor, atoms_fd: Tensor, k: int) -> Tensor:
    """Returns latents `[n, f]` of rows `[n, d]`, at most k of them above zero and none below; atoms have unit norm.

    Each step takes up the atom with the greatest cosine with the residual r, beside those whose latent is not zero;
    moves all these latents S along their gradient g = r A_S^T by the step that is the best in that direction,
    <r, g A_S> / ||g A_S||^2; and sets to zero what came out negative. That is the authors' form of gradient pursuit
    (Blumensath and Davies 2008), in which an atom whose latent went to zero is dropped. A row that is coded (`EXACT`)
    is left as it is; zeros give zeros. Nothing here waits for the device.
    """
    z_nf = x_nd.new_zeros(*x_nd.shape[:-1], len(atoms_fd))
    residual_nd, enough_n1 = x_nd, EXACT**2 * x_nd.square().sum(-1, keepdim=True)
    for _ in range(k):
        gradient_nf = residual_nd @ atoms_fd.T
        taken_nf = (z_nf > 0).scatter(-1, gradient_nf.argmax(-1, keepdim=True), True)
        gradient_nf = gradient_nf * taken_nf
        z_nf = (z_nf + best_step(residual_nd, gradient_nf @ atoms_fd, enough_n1) * gradient_nf).relu()
        residual_nd = x_nd - z_nf @ atoms_fd
    return z_nf


@torch.no_grad()
def fit_nonnegative_itda(batches: Iterable[Tensor], *, fvu_threshold: float, max_atoms: int, k: int) -> NonNegativeITDA:
    """Grows a dictionary from batches of rows `[n, d]`, which lie on the device it is to be on, as `itda.grow` does.

    Mean and standard deviation of each channel are those of all rows, so the batches are gone through once before; a
    channel at rest is divided by 1. Raises `UserError` as `grow` does, for a k below 1, for an iterator, and where
    every row is within the threshold of the mean.
    """
    refuse_steps(k)
    if isinstance(batches, Iterator):
        raise UserError("the rows are gone through more than once", remedy="give a list of batches, not an iterator")
    mean_d, std_d = _mean_and_std(batches)
    varying = (std_d > 0).sum()  # the mean of ||x'||^2, since each of these channels has a variance of 1
    std_d = torch.where(std_d > 0, std_d, 1)

    def code(x_nd: Tensor, atoms_fd: Tensor) -> Tensor:
        return nonnegative_pursuit(x_nd, atoms_fd, k)

    atoms_fd = grow(
        batches,
        code,
        lambda _: varying,
        fvu_threshold=fvu_threshold,
        max_atoms=max_atoms,
        prepare=lambda rows_nd: (rows_nd.float() - mean_d) / std_d,
    )
    if not len(atoms_fd):
        raise UserError(
            f"every row is within {fvu_threshold} of the mean, and none becomes an atom",
            remedy="lower the threshold, or check how the rows were captured",
        )
    return NonNegativeITDA(atoms_fd, mean_d, std_d, k)


def _mean_and_std(batches: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Returns the mean and the standard deviation of each channel, `[d]` in float32, from sums in float64 that are
    counted from the first row."""
    count, origin_d = 0, None
    for rows_nd in batches:
        refuse_rows(rows_nd, None if origin_d is None else len(origin_d), "ITDA")
        if not len(rows_nd):
            continue
        if origin_d is None:
            origin_d = rows_nd[0].double()
            sum_d, square_d = torch.zeros_like(origin_d), torch.zeros_like(origin_d)
        shifted_nd = rows_nd.double() - origin_d
        count += len(rows_nd)
        sum_d += shifted_nd.sum(0)
        square_d += shifted_nd.square().sum(0)
    if origin_d is None:
        raise UserError("there are no rows to grow a dictionary from", remedy="give at least two")
    shift_d = sum_d / count
    return (origin_d + shift_d).float(), (square_d / count - shift_d.square()).clamp_min(0).sqrt().float()
