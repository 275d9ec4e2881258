"""A setting of sparsity says how rows are coded in training, what that costs, and as what it is exported.

`largest` (TopK, BatchTopK) and `thresholds` (L1, JumpReLU) hold the settings; another one is another subclass.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from torch import Tensor

from sae_models.normalisation import Normalisation
from sae_models.tensors import SAE
from sae_models.weights import Weights


@dataclass(frozen=True)
class Nested:
    """These are the nested codes of an autoencoder, without the whole one; `architectures.Matryoshka` asks for them."""

    sizes: tuple[int, ...] = ()
    """The first so many features are one code."""
    ks: tuple[int, ...] = ()
    """The largest so many latents are one code."""


class Coded(NamedTuple):
    """This is what S autoencoders make of n rows."""

    nested: list[Tensor]
    """Reconstructions `[S, n, d]` of each nested code, the whole one last."""
    penalty_s: Tensor
    """What the setting adds to the loss, for latents."""
    active_sf: Tensor
    """Which features were active on any row."""
    l0_s: Tensor
    """The mean number of active latents a row."""


class Sparsity(ABC):
    """A setting says which latents are active, with all that training and export do differently for it."""

    fuses: ClassVar[bool] = False
    """Whether `torch.compile` makes `code` faster."""
    own_parameters: ClassVar[tuple[str, ...]] = ()
    """Names of what it trains beside the weights that all have, each `[S, f]`."""

    @property
    def ks(self) -> tuple[int, ...]:
        """Every k that its training ends or begins with; none where the setting has no k."""
        return ()

    def k_at(self, step: int, steps: int) -> int:
        """Returns k of a step, counted from 0, of a training of `steps`; 0 where the setting has no k."""
        return 0

    def start_values(self, weights: Weights) -> dict[str, Tensor]:
        """Returns the first values of `own_parameters`, once `weights.unit` is known."""
        return {}

    @abstractmethod
    def code(self, weights: Weights, x_nd: Tensor, k: int, nested: Nested) -> Coded:
        """Codes normalised rows, with a graph for the weights. k: that of this step."""

    @abstractmethod
    def exported(self, weights: Weights, s: int, normalisation: Normalisation) -> SAE:
        """Returns autoencoder `s` for inference on raw rows."""
