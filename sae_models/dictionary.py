"""This says what every dictionary can do. Shapes: n rows, d the width of a row, f features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from torch import Tensor

#: Multiplications up to which latents are written out with all their zeros before they are decoded: at 800 rows, 768
#: features and a width of 96 the one product is as fast as gathering directions.
WRITTEN_OUT = 2**27


@runtime_checkable
class Dictionary(Protocol):
    """A dictionary codes a row `[n, d]` as latents `[n, f]` and back; x is approximately decode(encode(x)).

    Leading dimensions other than n pass through. A latent of zero means that the feature is not active.
    """

    @property
    def width(self) -> int:
        """d: the number of values in a row."""
        ...

    @property
    def num_features(self) -> int:
        """f: the number of latents."""
        ...

    def encode(self, x_nd: Tensor) -> Tensor:
        """Returns latents `[n, f]` of raw (not normalised) rows `[n, d]`."""
        ...

    def decode(self, z_nf: Tensor) -> Tensor:
        """Returns rows `[n, d]` from latents `[n, f]`, with the bias."""
        ...

    def decode_linear(self, z_nf: Tensor) -> Tensor:
        """Returns the part of `decode` that is linear in the latents: no bias, so zeros give zeros. Transport adds
        this."""
        ...

    def directions(self, numbers: Tensor) -> Tensor:
        """Returns what a latent of 1 adds to a row, `[k, d]`, for the features of k numbers."""
        ...


def decode_some(dictionary: Dictionary, numbers: Tensor, z_nk: Tensor) -> Tensor:
    """Returns `decode_linear` of latents `[..., n, k]` of k features, all others being zero. Many rows are multiplied
    with the directions of these features alone."""
    rows = z_nk[..., 0].numel() if z_nk.shape[-1] else 0
    if rows * dictionary.num_features * dictionary.width > WRITTEN_OUT:
        return z_nk @ dictionary.directions(numbers).to(z_nk)
    z_nf = z_nk.new_zeros(*z_nk.shape[:-1], dictionary.num_features)
    z_nf[..., numbers] = z_nk
    return dictionary.decode_linear(z_nf)


@dataclass(frozen=True)
class Identity:
    """This is the dictionary whose features are the coordinates themselves: "dense" patches and neurons."""

    width: int

    @property
    def num_features(self) -> int:
        return self.width

    def encode(self, x_nd: Tensor) -> Tensor:
        return x_nd

    def decode(self, z_nf: Tensor) -> Tensor:
        return z_nf

    def decode_linear(self, z_nf: Tensor) -> Tensor:
        return z_nf

    def directions(self, numbers: Tensor) -> Tensor:
        rows_kd = numbers.new_zeros(len(numbers), self.width).float()
        return rows_kd.scatter_(1, numbers[:, None], 1.0)
