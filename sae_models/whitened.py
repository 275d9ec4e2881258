"""This is the TopK autoencoder of arXiv 2505.24360, which reads whitened rows that are clipped, for inference.

What can be folded into weights for raw rows is. Two things cannot, and stay: a whitened value beyond `clip` is clipped,
and latents have no ReLU, so that where fewer than k are positive the largest of the others are active, and negative.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from riebench.core.errors import UserError
from sae_models.pca import load_decoder, save_decoder
from sae_models.settings import refuse_unless_whole

KIND = "whitened-topk"
SHAPES = {
    "whitening": ("d_in", "d_in"),
    "mean": ("d_in",),
    "W_enc": ("d_in", "d_sae"),
    "b_enc": ("d_sae",),
    "b_dec": ("d_in",),
}
"""Tensors beside W_dec in a checkpoint -> their shapes, in cfg.json's words."""


@dataclass(frozen=True)
class WhitenedTopK:
    """WhitenedTopK computes z = topk(y W_enc + b_enc), x_hat = z W_dec + b_dec, with y = clip(x M - mean).

    Inputs are cast to the weights' dtype. Raises `UserError` for a k or a clip that cannot be meant.
    """

    whitening_dd: Tensor
    """M: `[d, d]`, which each column's deviation is already divided out of."""
    mean_d: Tensor
    """The mean of x M, `[d]`."""
    W_enc: Tensor
    """`[d, f]`, of whitened rows."""
    b_enc: Tensor
    """`[f]`."""
    W_dec: Tensor
    """`[f, d]`, directions of raw rows."""
    b_dec: Tensor
    """`[d]`."""
    k: int
    """How many latents are active on a row."""
    clip: float
    """The greatest absolute value of a whitened row that is told from greater ones."""

    def __post_init__(self) -> None:
        refuse_unless_whole(self, "k")
        if self.k > self.num_features:
            raise UserError(f"k={self.k} is more than the {self.num_features} features there are", remedy="lower k")
        number = isinstance(self.clip, int | float) and not isinstance(self.clip, bool)
        if not (number and isfinite(self.clip) and self.clip > 0):
            raise UserError(f"rows cannot be clipped at {self.clip!r}", remedy="give a number above 0")

    @property
    def width(self) -> int:
        return self.W_dec.shape[1]

    @property
    def num_features(self) -> int:
        return len(self.W_dec)

    def encode(self, x_nd: Tensor) -> Tensor:
        y_nd = (x_nd.to(self.W_enc.dtype) @ self.whitening_dd - self.mean_d).clamp(-self.clip, self.clip)
        h_nf = y_nd @ self.W_enc + self.b_enc
        values_nk, features_nk = h_nf.topk(self.k, dim=-1, sorted=False)
        return torch.zeros_like(h_nf).scatter(-1, features_nk, values_nk)

    def decode(self, z_nf: Tensor) -> Tensor:
        return self.decode_linear(z_nf) + self.b_dec

    def decode_linear(self, z_nf: Tensor) -> Tensor:
        return z_nf @ self.W_dec

    def directions(self, numbers: Tensor) -> Tensor:
        return self.W_dec[numbers.to(self.W_dec.device)]

    def save(self, folder: Path, metadata: dict[str, Any]) -> str:
        """Saves as `pca.save_decoder` does."""
        named = {"whitening": self.whitening_dd, "mean": self.mean_d, "W_enc": self.W_enc, "b_enc": self.b_enc}
        tensors = named | {"W_dec": self.W_dec, "b_dec": self.b_dec}
        return save_decoder(folder, KIND, tensors, {"k": self.k, "clip": self.clip}, metadata)

    @classmethod
    def load(cls, folder: Path, *, device: str | torch.device = "cpu") -> WhitenedTopK:
        """Loads as `pca.load_decoder` does; also raises `UserError` where k or clip cannot be meant."""
        tensors, config = load_decoder(folder, KIND, SHAPES, ("k", "clip"), device=device)
        named = {"whitening_dd": tensors.pop("whitening"), "mean_d": tensors.pop("mean")} | tensors
        return cls(**named, k=config["k"], clip=config["clip"])
