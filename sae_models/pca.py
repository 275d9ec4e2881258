"""Principal components are a dictionary: the best linear code of a given size, with every feature active.

The files of dictionaries that SAELens does not know, in the layout of `sae_models.checkpoint`: cfg.json with
`architecture`, `d_in`, `d_sae`, `metadata` and settings of their own; the weights W_dec [d_sae, d_in], b_dec [d_in]
where there is a bias, and more of their own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from riebench.core.errors import UserError
from riebench.core.files import read_json, write_bytes, write_json
from sae_models.layouts import SAELENS, refuse_missing
from sae_models.tensors import read_safetensors, refuse_misfit, refuse_not_finite

#: Type in which rows are multiplied and their covariance is decomposed -> the variance, as a share of the first
#: component's, below which a direction is rounding.
LEAST_VARIANCE = {torch.float64: 1e-10, torch.float32: 1e-6}
AGAIN = "save the dictionary again"


@dataclass(frozen=True)
class PCA:
    """PCA computes z = (x - mean) V^T, x_hat = z V + mean (Pearson 1901). Inputs are cast to the components' dtype.

    Without components it codes every row as the mean.
    """

    components_fd: Tensor
    """V: orthonormal rows `[f, d]`, in the order of the variance along them, largest first."""
    mean_d: Tensor
    """`[d]`."""

    @classmethod
    def fit(cls, rows_nd: Tensor, num_features: int | None = None) -> PCA:
        """Fits as `fit_pca` does, to rows that are all there."""
        return fit_pca([rows_nd], num_features)

    @property
    def width(self) -> int:
        return self.components_fd.shape[1]

    @property
    def num_features(self) -> int:
        return len(self.components_fd)

    def encode(self, x_nd: Tensor) -> Tensor:
        return (x_nd.to(self.mean_d.dtype) - self.mean_d) @ self.components_fd.T

    def decode(self, z_nf: Tensor) -> Tensor:
        return self.decode_linear(z_nf) + self.mean_d

    def decode_linear(self, z_nf: Tensor) -> Tensor:
        return z_nf @ self.components_fd

    def directions(self, numbers: Tensor) -> Tensor:
        return self.components_fd[numbers.to(self.components_fd.device)]

    def save(self, folder: Path, metadata: dict[str, Any]) -> str:
        """Saves as `save_decoder` does."""
        return save_decoder(folder, "pca", {"W_dec": self.components_fd, "b_dec": self.mean_d}, {}, metadata)

    @classmethod
    def load(cls, folder: Path, *, device: str | torch.device = "cpu") -> PCA:
        """Loads as `load_decoder` does."""
        tensors, _ = load_decoder(folder, "pca", {"b_dec": ("d_in",)}, device=device)
        return cls(tensors["W_dec"], tensors["b_dec"])


@torch.no_grad()
def fit_pca(batches: Iterable[Tensor], num_features: int | None = None) -> PCA:
    """Fits the first principal components of rows that come in batches `[n, d]`; None: all directions that they vary
    in.

    Sums are of d x d values, counted from the first row, and kept in float64 on the rows' device. Rows of half
    precision are multiplied, and their covariance is decomposed, in float32, which has at least 13 bits more than they
    have; others in float64. The components are float32. Raises `UserError` for rows that are not finite or differ in
    width, and where the rows vary in fewer directions than are asked for, or in none.
    """
    if num_features is not None and num_features < 1:
        raise UserError(f"{num_features} principal components cannot be fitted", remedy="ask for at least 1")
    count, origin_d = 0, None
    for rows_nd in batches:
        refuse_rows(rows_nd, None if origin_d is None else len(origin_d), "PCA")
        if not len(rows_nd):
            continue
        if origin_d is None:
            wide = torch.float32 if rows_nd.dtype.itemsize == 2 else torch.float64
            origin_d = rows_nd[0].double()
            sum_d, square_dd = torch.zeros_like(origin_d), origin_d.new_zeros(len(origin_d), len(origin_d))
        shifted_nd = rows_nd.to(wide) - origin_d.to(wide)
        count += len(rows_nd)
        sum_d += shifted_nd.sum(0)
        square_dd += shifted_nd.T @ shifted_nd
    if origin_d is None:
        raise UserError("there are no rows to fit principal components to", remedy="give at least two")
    covariance_dd = square_dd / count - torch.outer(sum_d, sum_d) / count**2
    variance_f, vectors_df = torch.linalg.eigh(covariance_dd.to(wide))
    found = int((variance_f > LEAST_VARIANCE[wide] * variance_f[-1]).sum()) if variance_f[-1] > 0 else 0
    if found < (num_features or 1):
        raise UserError(
            f"{count} rows vary in {found} directions, and {num_features or 1} components are asked for",
            remedy="use more, different rows, or fewer components",
        )
    components_fd = vectors_df.T.flip(0)[: num_features or found]
    return PCA(components_fd.float().contiguous(), (origin_d + sum_d / count).float())


def refuse_rows(rows_nd: Tensor, width: int | None, what: str) -> None:
    """Raises `UserError` for rows to fit to that are not `[n, width]`, where a width is known, or not finite."""
    if rows_nd.ndim != 2 or width not in (None, rows_nd.shape[1]):
        raise UserError(
            f"rows of shape {list(rows_nd.shape)} cannot be fitted by {what}", remedy=f"give [n, {width or 'd'}]"
        )
    if not bool(torch.isfinite(rows_nd).all()):
        raise UserError(f"the rows to fit {what} to hold NaN or infinite values", remedy="check how they were captured")


def save_decoder(
    folder: Path, architecture: str, tensors: dict[str, Tensor], settings: dict[str, Any], metadata: dict[str, Any]
) -> str:
    """Writes a checkpoint and returns the sha256 of its weight file. Same weights, same bytes.

    tensors: W_dec, and what there is beside it. `settings` and `metadata` hold what JSON can. Raises `UserError` when
    the folder cannot be written or the weights are not finite.
    """
    held = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    refuse_not_finite(held, f"the {architecture} dictionary to save", "fit it again")
    data = safetensors.torch.save(held, metadata={"format": "pt"})
    write_bytes(Path(folder) / SAELENS.weights, data)
    num_features, width = tensors["W_dec"].shape
    config = {"architecture": architecture, "d_in": width, "d_sae": num_features, "metadata": metadata} | settings
    write_json(Path(folder) / SAELENS.config, config)
    return hashlib.sha256(data).hexdigest()


def load_decoder(
    folder: Path,
    architecture: str,
    more: Mapping[str, tuple[str, ...]],
    settings: Sequence[str] = (),
    *,
    device: str | torch.device,
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Returns (float32 tensors, what cfg.json says) of a checkpoint.

    more: tensor beside W_dec -> its shape, in cfg.json's words. settings: what cfg.json must have besides. Raises
    `UserError` for files that are missing or broken, another architecture, a setting that is missing, and weights whose
    names, shapes or values do not fit.
    """
    config_path, path = Path(folder) / SAELENS.config, Path(folder) / SAELENS.weights
    config = read_json(config_path, f"{architecture} configuration")
    if config.get("architecture") != architecture:
        raise UserError(
            f"{config_path}: architecture is {config.get('architecture')!r}, not {architecture!r}",
            remedy=f"use a folder that holds a dictionary of kind {architecture}",
        )
    missing = [name for name in settings if name not in config]
    if missing:
        raise UserError(f"the configuration in {folder} lacks {', '.join(missing)}", remedy=AGAIN)
    refuse_missing(path, SAELENS)
    tensors = read_safetensors(path)
    words: dict[str, tuple[str, ...]] = {"W_dec": ("d_sae", "d_in"), **more}
    shapes: dict[str, tuple[Any, ...]] = {name: tuple(map(config.get, shape)) for name, shape in words.items()}
    refuse_misfit(tensors, shapes, str(path), SAELENS.config, AGAIN)
    refuse_not_finite(tensors, str(path), AGAIN)
    return {name: value.to(device, torch.float32) for name, value in tensors.items()}, config
