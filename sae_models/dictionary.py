"""This says what every dictionary can do. Shapes: n rows, d the width of a row, f features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from torch import Tensor


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
