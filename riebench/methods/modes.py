"""Modes: the protocol as it is meant, and the published code as it is. Imports no torch until a mode is used.

Whatever the two do differently is a method here, so that nothing else asks which mode it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from riebench.core.errors import UserError, did_you_mean
from riebench.edits.phrases import Phrase, parse_phrase, published_phrase

if TYPE_CHECKING:
    from torch import Tensor

    from riebench.backbones.family import Site
    from riebench.methods.method import Method
    from riebench.methods.selection import Selected
    from riebench.methods.transport import Transport
    from riebench.regions.find import Look
    from sae_models.dictionary import Dictionary

#: Site -> features `[steps, cells, F]`.
Features = Mapping["Site", "Tensor"]


class Mode(Protocol):
    """Says how a run is done where the protocol and the published code differ."""

    name: str
    summary: str
    keeps_marks: bool
    """Whether prompts are scored with their `[ ]`."""
    seeds: tuple[int, ...]
    """The only seeds that a run has; empty where any may be given."""
    mask_rules: tuple[str, ...]
    """How an image mask may become cells; the first is the mode's own."""
    pool: str
    """What k is of where a method does not say: each block, or all together."""
    dense_statistic: str
    """The statistic of a region that `dense` takes, where it has no choice."""
    plans_each_subset: bool
    """Whether a method plans anew for each subset of the blocks, so that its k are chosen among these; else what it
    plans on all blocks is restricted to them."""
    tf32_products: bool
    """Whether a GPU computes products of float32 matrices in TF32 (`riebench.core.precision`)."""

    @property
    def look(self) -> Look:
        """The function that finds masks in images (`riebench.regions.find`)."""
        ...

    @property
    def read_phrase(self) -> Callable[[str], Phrase]:
        """The function that reads region phrases (`riebench.edits.phrases`)."""
        ...

    def select(
        self, edited: Features, original: Features, k: int, pool: str, aggregation: str, unit_norm: bool
    ) -> dict[Site, Selected]:
        """Returns the features of each site that go on and off. pool: "" takes the mode's own."""
        ...

    def settings(self, how: Transport, category: str) -> Transport:
        """Returns the settings that count for an edit of a category."""
        ...

    def off_scale(self, dictionary: Dictionary, on: Tensor, off: Tensor) -> float:
        """Returns what the part that is taken from the running activation is multiplied with."""
        ...

    def check(self, method: Method) -> None:
        """Raises `UserError` for a method with settings that the mode has not."""
        ...


@dataclass(frozen=True)
class Strict:
    """The protocol, without the defects of the published code."""

    name: str = "strict"
    summary: str = "the protocol, without the defects of the published code"
    keeps_marks: bool = False
    seeds: tuple[int, ...] = ()
    mask_rules: tuple[str, ...] = ("touched", "wide", "half")
    pool: str = "block"
    dense_statistic: str = ""
    plans_each_subset: bool = False  # so that what blocks do alone and together is of the same features
    tf32_products: bool = True

    @property
    def look(self) -> Look:
        """The function that finds masks pixel by pixel, `masks_of`."""
        from riebench.regions.find import masks_of

        return masks_of

    @property
    def read_phrase(self) -> Callable[[str], Phrase]:
        """The function that reads phrases as the protocol has them."""
        return parse_phrase

    def select(
        self, edited: Features, original: Features, k: int, pool: str, aggregation: str, unit_norm: bool
    ) -> dict[Site, Selected]:
        """Returns the features that `riebench.methods.selection.select` chooses by their means; each block has its k
        where `pool` is ""."""
        from riebench.methods.selection import mean_features, select

        means = (
            {site: mean_features(features, aggregation, unit_norm) for site, features in side.items()}
            for side in (edited, original)
        )
        return select(*means, k, pool or self.pool)

    def settings(self, how: Transport, category: str) -> Transport:
        """Returns the settings as they are."""
        return how

    def off_scale(self, dictionary: Dictionary, on: Tensor, off: Tensor) -> float:
        """Returns 1."""
        return 1.0

    def check(self, method: Method) -> None:
        """Refuses none."""


@dataclass(frozen=True)
class Reference:
    """The published code as it is, so that numbers can be compared with it (`docs/reference-mode.md`)."""

    name: str = "reference"
    summary: str = "as the published code does, so that numbers can be compared with it"
    keeps_marks: bool = True
    seeds: tuple[int, ...] = (42,)
    mask_rules: tuple[str, ...] = ("published",)
    pool: str = "all"
    dense_statistic: str = "mean"
    plans_each_subset: bool = True
    tf32_products: bool = False  # as torch does by itself

    @property
    def look(self) -> Look:
        """The function that finds whole cells, `whole_cells`."""
        from riebench.regions.find import whole_cells

        return whole_cells

    @property
    def read_phrase(self) -> Callable[[str], Phrase]:
        """The function that reads phrases as the published code does."""
        return published_phrase

    def select(
        self, edited: Features, original: Features, k: int, pool: str, aggregation: str, unit_norm: bool
    ) -> dict[Site, Selected]:
        """Returns the features that `riebench.methods.published.select_published` chooses; all blocks share k where
        `pool` is ""."""
        from riebench.methods.published import select_published

        return select_published(edited, original, k, pool or self.pool, aggregation, unit_norm)

    def settings(self, how: Transport, category: str) -> Transport:
        """Returns the settings by which objects that come or go are moved in their own places, and something is always
        taken away from those that go, and in mode adaptive."""
        if category in ("add_object", "delete_object"):
            how = replace(how, placement="edited")
        return replace(how, only_add=False) if category == "delete_object" or how.mode == "adaptive" else how

    def off_scale(self, dictionary: Dictionary, on: Tensor, off: Tensor) -> float:
        """Returns the ratio of the features' decoder norms (`riebench.methods.published.norm_ratio`)."""
        from riebench.methods.published import norm_ratio

        return norm_ratio(dictionary, on, off)

    def check(self, method: Method) -> None:
        """Refuses the statistic "max" of neurons, whether it would be used or not."""
        if method.sites == "neurons" and getattr(method, "statistic", "") == "max":
            raise UserError(
                f"{method.name}: the published code has no statistic 'max' of neurons",
                remedy="use mean or quantile, or mode strict",
            )


MODES: dict[str, Mode] = {mode.name: mode for mode in (Strict(), Reference())}


def mode_named(name: str) -> Mode:
    """Returns the mode of a name. Raises `UserError` for an unknown one."""
    if name not in MODES:
        raise UserError(f"unknown mode {name!r}{did_you_mean(name, MODES)}", remedy=f"use {' or '.join(MODES)}")
    return MODES[name]
