"""Here is what sparse autoencoders of one hidden layer share; `topk` and `jumprelu` say which latents are active."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, normalize


class Autoencoder(nn.Module):
    """An autoencoder computes h = (x - b_dec) W_enc + b_enc and x_hat = z W_dec + b_dec; a subclass makes z of h.

    Parameters, laid out and named as SAELens does: `W_enc` [d, f], `b_enc` [f], `W_dec` [f, d], `b_dec` [d].
    Inputs are cast to the weights' dtype.
    """

    def __init__(self, width: int, num_features: int, seed: int) -> None:
        """Draws random unit decoder rows from `seed`; the encoder is a copy of their transpose, and biases are zero."""
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        rows_fd = normalize(torch.randn(num_features, width, generator=generator), dim=-1)
        self.W_dec = nn.Parameter(rows_fd)
        self.W_enc = nn.Parameter(rows_fd.T.clone(memory_format=torch.contiguous_format))
        self.b_enc = nn.Parameter(torch.zeros(num_features))
        self.b_dec = nn.Parameter(torch.zeros(width))

    @property
    def width(self) -> int:
        """d: the number of values in a row."""
        return self.W_dec.shape[1]

    @property
    def num_features(self) -> int:
        """f: the number of latents."""
        return self.W_dec.shape[0]

    def preactivations(self, x_nd: Tensor) -> Tensor:
        """Returns h, `[n, f]`, of rows `[n, d]`."""
        # b_dec goes through W_enc by itself: its gradient then costs a vector, not a row for each of x
        return linear(x_nd.to(self.W_enc.dtype), self.W_enc.T, self.b_enc - self.b_dec @ self.W_enc)

    def encode(self, x_nd: Tensor) -> Tensor:
        """Returns latents `[n, f]` of rows `[n, d]`."""
        raise NotImplementedError

    def decode(self, z_nf: Tensor) -> Tensor:
        """Returns rows `[n, d]` of latents `[n, f]`."""
        return self.decode_linear(z_nf) + self.b_dec

    def decode_linear(self, z_nf: Tensor) -> Tensor:
        """Returns the part of `decode` that is linear in the latents."""
        return z_nf @ self.W_dec

    def directions(self, numbers: Tensor) -> Tensor:
        """Returns the decoder's rows `[k, d]` of k features."""
        return self.W_dec[numbers.to(self.W_dec.device)]

    def forward(self, x_nd: Tensor) -> Tensor:
        """Returns the reconstruction `[n, d]` of rows `[n, d]`."""
        return self.decode(self.encode(x_nd))
