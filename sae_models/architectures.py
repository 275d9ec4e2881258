"""Architectures are small frozen settings that compose: what is sparse, what is nested, what revives the dead.

`Architecture(1280, 5120, BatchTopK(40), Matryoshka(prefixes=(0.1, 0.3)), AuxK(256))` is one autoencoder to train.
All of them raise `UserError` for values that cannot be meant.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from riebench.core.errors import UserError
from sae_models.largest import BatchTopK, TopK
from sae_models.revival import AuxK, Restart, Revival
from sae_models.settings import refuse_unless_whole
from sae_models.sparsity import Nested, Sparsity
from sae_models.thresholds import L1, JumpReLU

__all__ = ["L1", "Architecture", "AuxK", "BatchTopK", "JumpReLU", "Matryoshka", "Restart", "TopK"]


@dataclass(frozen=True)
class Matryoshka:
    """Asks for nested codes that each reconstruct by themselves (Bussmann et al. 2025, arXiv 2503.17547).

    The loss is the mean over the nested codes and the whole one.
    """

    prefixes: tuple[float, ...] = ()
    """Shares of the features, ascending, between 0 and 1: the first so many are one code."""
    ks: tuple[int, ...] = ()
    """Or, with TopK and BatchTopK, ascending numbers of latents, below k: the largest so many are one code."""

    def __post_init__(self) -> None:
        sizes = self.prefixes or self.ks
        if bool(self.prefixes) == bool(self.ks):
            raise UserError("Matryoshka needs one of prefixes and ks", remedy="give one of the two")
        if list(sizes) != sorted(set(sizes)):
            raise UserError(f"Matryoshka's sizes {sizes} do not ascend", remedy="give each once, the smallest first")
        if not all(0 < share < 1 for share in self.prefixes):
            raise UserError(f"Matryoshka's prefixes are {self.prefixes}", remedy="give shares between 0 and 1")
        if not all(isinstance(k, int) and k >= 1 for k in self.ks):
            raise UserError(f"Matryoshka's ks are {self.ks}", remedy="give whole numbers of at least 1")

    def nested(self, num_features: int) -> Nested:
        """Returns the nested codes of an autoencoder with so many features."""
        return Nested(tuple(math.floor(share * num_features) for share in self.prefixes), self.ks)


@dataclass(frozen=True)
class Architecture:
    """This describes one autoencoder to train."""

    width: int
    """d: the number of values in an input row."""
    num_features: int
    """f: the number of latents."""
    sparsity: Sparsity
    """Which latents are active."""
    matryoshka: Matryoshka | None = None
    """Which nested codes reconstruct by themselves."""
    revival: Revival | None = None
    """What brings dead features back."""
    seed: int = 0
    """What the directions are drawn from in which the features start, and start again."""
    block: int = 0
    """Which rows it is trained on, where a batch holds those of several blocks, `[blocks, n, d]`."""

    def __post_init__(self) -> None:
        refuse_unless_whole(self, "width", "num_features")
        ks, nested = self.sparsity.ks, self.nested
        for k in ks:
            if k > self.num_features:
                raise UserError(
                    f"k={k} is more than the {self.num_features} features there are",
                    remedy="lower k or raise num_features",
                )
        if self.matryoshka is None:
            return
        if nested.ks and nested.ks[-1] >= min(ks, default=0):
            raise UserError(
                f"Matryoshka's ks {nested.ks} do not nest in {self.sparsity}",
                remedy="give ks below the k of TopK or BatchTopK, or prefixes",
            )
        if nested.sizes and (nested.sizes[0] < 1 or len(set(nested.sizes)) < len(nested.sizes)):
            raise UserError(
                f"Matryoshka's prefixes {self.matryoshka.prefixes} of {self.num_features} features are "
                f"{nested.sizes} features",
                remedy="give prefixes that differ by at least a feature",
            )

    @property
    def nested(self) -> Nested:
        """The nested codes, without the whole one."""
        return Nested() if self.matryoshka is None else self.matryoshka.nested(self.num_features)
