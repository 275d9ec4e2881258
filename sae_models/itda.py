"""ITDA is inference-time decomposition of activations (Leask, Nanda and Al Moubayed 2025, arXiv 2505.17769).

Its atoms are activations that were seen, and its codes are found by a pursuit: nothing is trained.
Rows are coded by gradient pursuit (Blumensath and Davies 2008, IEEE Transactions on Signal Processing 56, 2370-2382).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from riebench.core.errors import UserError
from sae_models.pca import load_decoder, refuse_rows, save_decoder

EXACT = 1e-6  # a residual of this share of the row's norm is rounding of float32: the row is coded


@dataclass(frozen=True)
class ITDA:
    """ITDA computes z = gradient pursuit of x in k steps, x_hat = z A. There is no bias, and latents may be negative.

    Inputs are cast to the atoms' dtype. Raises `UserError` for a k below 1.
    """

    atoms_fd: Tensor
    """A: `[f, d]`, rows of unit norm."""
    k: int
    """Steps of the pursuit, and so the most latents that may be active on a row."""

    def __post_init__(self) -> None:
        refuse_steps(self.k)

    @property
    def width(self) -> int:
        return self.atoms_fd.shape[1]

    @property
    def num_features(self) -> int:
        return len(self.atoms_fd)

    def encode(self, x_nd: Tensor) -> Tensor:
        return gradient_pursuit(x_nd.to(self.atoms_fd.dtype), self.atoms_fd, self.k)

    def decode(self, z_nf: Tensor) -> Tensor:
        return self.decode_linear(z_nf)

    def decode_linear(self, z_nf: Tensor) -> Tensor:
        return z_nf @ self.atoms_fd

    def directions(self, numbers: Tensor) -> Tensor:
        return self.atoms_fd[numbers.to(self.atoms_fd.device)]

    def save(self, folder: Path, metadata: dict[str, Any]) -> str:
        """Saves as `pca.save_decoder` does."""
        return save_decoder(folder, "itda", {"W_dec": self.atoms_fd}, {"k": self.k}, metadata)

    @classmethod
    def load(cls, folder: Path, *, device: str | torch.device = "cpu") -> ITDA:
        """Loads as `pca.load_decoder` does; also raises `UserError` where the configuration has no valid k."""
        tensors, config = load_decoder(folder, "itda", {}, ("k",), device=device)
        return cls(tensors["W_dec"], config["k"])


def refuse_steps(k: int) -> None:
    """Raises `UserError` for a number of steps that no pursuit can have."""
    if isinstance(k, bool) or not isinstance(k, int) or k < 1:
        raise UserError(f"a pursuit cannot have {k!r} steps", remedy="give a whole number of at least 1")


@torch.no_grad()
def gradient_pursuit(x_nd: Tensor, atoms_fd: Tensor, k: int) -> Tensor:
    """Returns latents `[n, f]` of rows `[n, d]`, at most k of them other than zero; atoms have unit norm.

    Each step takes up the atom with the greatest |cosine| with the residual r, then moves all latents S that were taken
    up along their gradient g = r A_S^T by the step that is the best in that direction: <r, g A_S> / ||g A_S||^2. An
    atom may come up again, so fewer than k may be active. A row that is coded (`EXACT`) is left as it is; zeros give
    zeros. Nothing here waits for the device.
    """
    z_nf = x_nd.new_zeros(*x_nd.shape[:-1], len(atoms_fd))
    taken_nf = torch.zeros_like(z_nf, dtype=torch.bool)
    residual_nd, enough_n1 = x_nd, EXACT**2 * x_nd.square().sum(-1, keepdim=True)
    for _ in range(k):
        gradient_nf = residual_nd @ atoms_fd.T
        taken_nf.scatter_(-1, gradient_nf.abs().argmax(-1, keepdim=True), True)
        gradient_nf = gradient_nf * taken_nf
        change_nd = gradient_nf @ atoms_fd
        step_n1 = best_step(residual_nd, change_nd, enough_n1)
        z_nf += step_n1 * gradient_nf
        residual_nd = residual_nd - step_n1 * change_nd
    return z_nf


def best_step(residual_nd: Tensor, change_nd: Tensor, enough_n1: Tensor) -> Tensor:
    """Returns how far, `[n, 1]`, to go along a change of the rows so that as little as can be is left of them: not at
    all where no more than `enough_n1` is left of a row's squared norm, or there is no change."""
    square_n1 = change_nd.square().sum(-1, keepdim=True)
    left_n1 = residual_nd.square().sum(-1, keepdim=True) > enough_n1
    best_n1 = (residual_nd * change_nd).sum(-1, keepdim=True) / square_n1
    return torch.where(left_n1 & (square_n1 > 0), best_n1, 0)


@torch.no_grad()
def fit_itda(batches: Iterable[Tensor], *, fvu_threshold: float, max_atoms: int, k: int) -> ITDA:
    """Grows a dictionary from batches of rows `[n, d]`, which lie on the device it is to be on, as `grow` does.

    A row is unexplained by ||x - x_hat||^2 / ||x||^2, about zero, since nothing is taken off before the pursuit. Raises
    `UserError` as `grow` does, for a k below 1, and where no row is other than zero.
    """
    grown = ITDA(torch.zeros(0, 0), k)  # refuses a k that cannot be meant

    def code(x_nd: Tensor, atoms_fd: Tensor) -> Tensor:
        return gradient_pursuit(x_nd, atoms_fd, grown.k)

    def variance(x_nd: Tensor) -> Tensor:
        return x_nd.square().sum(-1)

    atoms_fd = grow(batches, code, variance, fvu_threshold=fvu_threshold, max_atoms=max_atoms)
    if not len(atoms_fd):
        raise UserError("there is no row other than zero to take an atom from", remedy="check how they were captured")
    return ITDA(atoms_fd, k)


def grow(
    batches: Iterable[Tensor],
    code: Callable[[Tensor, Tensor], Tensor],
    variance: Callable[[Tensor], Tensor],
    *,
    fvu_threshold: float,
    max_atoms: int,
    prepare: Callable[[Tensor], Tensor] = Tensor.float,
) -> Tensor:
    """Returns atoms `[f, d]` that batches of rows `[n, d]` lead to: a row becomes an atom, scaled to unit norm, where
    the atoms A there are leave more than `fvu_threshold` of it unexplained.

    The fraction is ||x - z A||^2 / v, with z = `code(rows, atoms)` `[n, f]`, v = `variance(rows)` `[n]` or one number,
    and x a row as `prepare` gives it. Rows are taken in their order. The batches are gone through again until a pass
    adds no atom, since a later atom may lead the pursuit of an earlier row astray: then every row is coded within the
    threshold. An iterator is gone through once. With `max_atoms` atoms it stops, whatever is left. Rows of zeros have
    no direction and are skipped.

    Raises `UserError` for settings that cannot be meant, and rows that are not finite or differ in width.
    """
    if not 0 < fvu_threshold < 1:
        raise UserError(f"an FVU threshold of {fvu_threshold} cannot be meant", remedy="use one between 0 and 1")
    if max_atoms < 1:
        raise UserError(f"a dictionary of {max_atoms} atoms cannot be grown", remedy="allow at least 1")

    def unexplained(x_nd: Tensor, atoms_fd: Tensor) -> Tensor:
        left_nd = x_nd - code(x_nd, atoms_fd) @ atoms_fd if len(atoms_fd) else x_nd
        return left_nd.square().sum(-1) / variance(x_nd)

    atoms_fd, width = torch.zeros(0, 0), None
    while True:
        before = len(atoms_fd)
        for rows_nd in batches:
            refuse_rows(rows_nd, width, "ITDA")
            if width is None:
                width = rows_nd.shape[1]
                atoms_fd = torch.zeros(0, width, device=rows_nd.device)
            waiting_nd = prepare(rows_nd)
            waiting_nd = waiting_nd[waiting_nd.square().sum(-1) > 0]
            while len(atoms_fd) < max_atoms:
                waiting_nd = waiting_nd[unexplained(waiting_nd, atoms_fd) > fvu_threshold]
                if not len(waiting_nd):
                    break
                atoms_fd = torch.cat([atoms_fd, waiting_nd[:1] / waiting_nd[:1].norm()])
        if len(atoms_fd) in (before, max_atoms):
            return atoms_fd
