"""Sparse autoencoders as small frozen settings that compose: what is sparse, what is nested, what revives the dead.

`Architecture(1280, 5120, BatchTopK(40), Matryoshka(prefixes=(0.1, 0.3)), AuxK(256))` is one autoencoder to train.
All of them raise `UserError` for values that cannot be meant.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from riebench.core.errors import UserError
from sae_models.autoencoder import refuse_unless_whole


@dataclass(frozen=True)
class TopK:
    """The k largest latents of each row (Gao et al. 2024, arXiv 2406.04093). Exported as `TopKSAE`."""

    k: int
    """Active latents a row."""
    start_k: int | None = None
    """k at the first step, where it is annealed; else k throughout."""
    anneal: float = 0.0
    """Share of the steps, the first ones, in which k goes linearly from `start_k` to k."""

    def __post_init__(self) -> None:
        refuse_unless_whole(self, "k")
        if self.start_k is not None:
            refuse_unless_whole(self, "start_k")
        if not 0 <= self.anneal <= 1:
            raise UserError(f"anneal is {self.anneal}", remedy="give a share of the steps between 0 and 1")
        if (self.start_k is not None) != (self.anneal > 0):
            raise UserError(
                f"start_k is {self.start_k} and anneal {self.anneal}", remedy="give both to anneal k, or neither"
            )

    def k_at(self, step: int, steps: int) -> int:
        """k of a step, counted from 0, of a training of `steps`."""
        if self.start_k is None or step >= self.anneal * steps:
            return self.k
        return round(self.start_k + (self.k - self.start_k) * step / (self.anneal * steps))


@dataclass(frozen=True)
class BatchTopK(TopK):
    """The n k largest latents of a batch of n rows: k a row on average (Bussmann et al. 2024, arXiv 2412.06410).

    Exported as a JumpReLU autoencoder with one threshold: the running mean of the least latent kept.
    """


@dataclass(frozen=True)
class L1:
    """ReLU, with the sum of the latents in the loss. Exported as a JumpReLU autoencoder with threshold 0."""

    weight: float
    """The loss gains weight * (mean over rows of the latents' sum), with latents in units of the rows' rms norm."""

    def __post_init__(self) -> None:
        _refuse_unless_positive(self, "weight")


@dataclass(frozen=True)
class JumpReLU:
    """A threshold for each feature, trained by a straight-through estimator (arXiv 2407.14435)."""

    l0_weight: float
    """The loss gains l0_weight * (mean over rows of the number of active latents)."""
    bandwidth: float = 0.001
    """Width of the estimator's rectangle, in units of the rows' rms norm; also the first value of each threshold."""

    def __post_init__(self) -> None:
        _refuse_unless_positive(self, "l0_weight")
        _refuse_unless_positive(self, "bandwidth")


@dataclass(frozen=True)
class Matryoshka:
    """Nested codes that each reconstruct by themselves (Bussmann et al. 2025, arXiv 2503.17547).

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


@dataclass(frozen=True)
class AuxK:
    """An auxiliary loss that has dead features code what the others leave (Gao et al. 2024, appendix A.2)."""

    k: int
    """Dead latents a row."""
    weight: float = 1 / 32
    """Of the share of the residual's squares that the dead leave."""
    dead_after: int = 10_000_000
    """A feature is dead when it was last active at least this many rows ago."""

    def __post_init__(self) -> None:
        refuse_unless_whole(self, "k", "dead_after")
        _refuse_unless_positive(self, "weight")


@dataclass(frozen=True)
class Restart:
    """Points dead features along residuals, at each report until the learning rate falls: quicker than AuxK where a
    training is short. (After the resampling of Bricken et al. 2023, "Towards Monosemanticity", which takes the rows.)
    """

    dead_after: int
    """A feature is dead when it was last active at least this many rows ago."""

    def __post_init__(self) -> None:
        refuse_unless_whole(self, "dead_after")


@dataclass(frozen=True)
class Architecture:
    """One autoencoder to train."""

    width: int
    """d: the number of values in an input row."""
    num_features: int
    """f: the number of latents."""
    sparsity: TopK | BatchTopK | L1 | JumpReLU
    matryoshka: Matryoshka | None = None
    revival: AuxK | Restart | None = None
    """What brings dead features back."""
    seed: int = 0
    """Of the directions in which the features start, and start again."""
    block: int = 0
    """Which rows it is trained on, where a batch holds those of several blocks, `[blocks, n, d]`."""

    def __post_init__(self) -> None:
        refuse_unless_whole(self, "width", "num_features")
        if isinstance(self.sparsity, TopK):
            for k in (self.sparsity.k, self.sparsity.start_k or 1):
                if k > self.num_features:
                    raise UserError(
                        f"k={k} is more than the {self.num_features} features there are",
                        remedy="lower k or raise num_features",
                    )
        if self.matryoshka is None:
            return
        if self.matryoshka.ks and not (
            isinstance(self.sparsity, TopK)
            and self.matryoshka.ks[-1] < min(self.sparsity.k, self.sparsity.start_k or self.sparsity.k)
        ):
            raise UserError(
                f"Matryoshka's ks {self.matryoshka.ks} do not nest in {self.sparsity}",
                remedy="give ks below the k of TopK or BatchTopK, or prefixes",
            )
        if self.prefix_sizes and (self.prefix_sizes[0] < 1 or len(set(self.prefix_sizes)) < len(self.prefix_sizes)):
            raise UserError(
                f"Matryoshka's prefixes {self.matryoshka.prefixes} of {self.num_features} features are "
                f"{self.prefix_sizes} features",
                remedy="give prefixes that differ by at least a feature",
            )

    @property
    def prefix_sizes(self) -> tuple[int, ...]:
        """The nested codes' numbers of features, without the whole."""
        shares = self.matryoshka.prefixes if self.matryoshka else ()
        return tuple(math.floor(share * self.num_features) for share in shares)


def _refuse_unless_positive(settings: object, name: str) -> None:
    value = getattr(settings, name)
    if not 0 < value < math.inf:
        raise UserError(f"{type(settings).__name__}'s {name} is {value!r}", remedy="give a number above 0")
