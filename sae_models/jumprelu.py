"""The JumpReLU sparse autoencoder (Rajamanoharan et al. 2024, arXiv 2407.14435), for inference.

BatchTopK and ReLU autoencoders are exported as this one: with one threshold for all features, and with 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, normalize

from riebench.errors import UserError


@dataclass(frozen=True)
class JumpReLUConfig:
    """The shape of a `JumpReLUSAE`. Raises `UserError` where no such autoencoder exists."""

    width: int
    """d: the number of values in an input row."""
    num_features: int
    """f: the number of latents."""

    def __post_init__(self) -> None:
        for name in ("width", "num_features"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise UserError(f"a JumpReLU SAE's {name} is {value!r}", remedy="give a whole number of at least 1")


class JumpReLUSAE(nn.Module):
    """z = h where h > threshold else 0, with h = (x - b_dec) W_enc + b_enc; x_hat = z W_dec + b_dec.

    Parameters, laid out and named as SAELens does: `W_enc` [d, f], `b_enc` [f], `W_dec` [f, d], `b_dec` [d],
    `threshold` [f], none below zero. Inputs are cast to the weights' dtype.
    """

    def __init__(self, config: JumpReLUConfig, *, seed: int = 0) -> None:
        """Random unit decoder rows drawn from `seed`, the encoder a copy of their transpose, the rest 0."""
        super().__init__()
        self.config = config
        generator = torch.Generator().manual_seed(seed)
        rows_fd = normalize(torch.randn(config.num_features, config.width, generator=generator), dim=-1)
        self.W_dec = nn.Parameter(rows_fd)
        self.W_enc = nn.Parameter(rows_fd.T.clone(memory_format=torch.contiguous_format))
        self.b_enc = nn.Parameter(torch.zeros(config.num_features))
        self.b_dec = nn.Parameter(torch.zeros(config.width))
        self.threshold = nn.Parameter(torch.zeros(config.num_features))

    @property
    def width(self) -> int:
        return self.config.width

    @property
    def num_features(self) -> int:
        return self.config.num_features

    def preactivations(self, x_nd: Tensor) -> Tensor:
        """`[n, f]`, before those at or below their threshold are set to zero."""
        return linear(x_nd.to(self.W_enc.dtype), self.W_enc.T, self.b_enc - self.b_dec @ self.W_enc)

    def encode(self, x_nd: Tensor) -> Tensor:
        h_nf = self.preactivations(x_nd)
        return h_nf * (h_nf > self.threshold)

    def decode(self, z_nf: Tensor) -> Tensor:
        return self.decode_linear(z_nf) + self.b_dec

    def decode_linear(self, z_nf: Tensor) -> Tensor:
        return z_nf @ self.W_dec

    def forward(self, x_nd: Tensor) -> Tensor:
        return self.decode(self.encode(x_nd))
