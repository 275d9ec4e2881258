"""SAE features of one's own choice, by number: what an explorer of a dictionary wants to try."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import ClassVar, Literal

import torch

from riebench.backbones.family import Site
from riebench.core.errors import UserError, did_you_mean, shown
from riebench.generation.interventions import Intervention
from riebench.methods.method import Case
from riebench.methods.selection import Selected
from riebench.methods.transport import Transport, transport

OF_TRACE = ("mode", "keep_spatial", "statistic")  # settings that say what becomes of values of a trace


def read_numbers(text: str) -> dict[str, tuple[int, ...]]:
    """Returns block -> feature numbers of "up.0.1:12,55 mid.0:3". Raises `UserError` for anything else."""
    found: dict[str, tuple[int, ...]] = {}
    for part in text.split():
        block, _, numbers = part.partition(":")
        try:
            more = (int(number) for number in numbers.split(","))
            found[block] = tuple(dict.fromkeys((*found.get(block, ()), *more)))
        except ValueError as error:
            raise UserError(
                f"{part!r} names no features", remedy="write block:number,number as in 'up.0.1:12,55 mid.0:3'"
            ) from error
    return found


@dataclass(frozen=True)
class Chosen(Transport):
    """Moves the SAE features of given numbers, as `Transport` says how."""

    on: str = ""
    """Features turned on, as "up.0.1:12,55 mid.0:3"."""
    off: str = ""
    """Features turned off, likewise."""
    unit: Literal["trace", "mean"] = "trace"
    """What a strength of 1 is: trace, the value that a feature has in each cell of these images; mean, its mean over
    many images where it is active, at every cell of the region, as in the published demo. A feature with a mean of zero
    was never seen active, so it is refused: no strength would make anything of it."""
    name: str = "chosen"
    sites: ClassVar[str] = "block"

    def __post_init__(self) -> None:
        super().__post_init__()
        read_numbers(self.on), read_numbers(self.off)
        for setting in fields(Transport):
            if self.unit == "mean" and setting.name in OF_TRACE and getattr(self, setting.name) != setting.default:
                raise UserError(
                    f"{setting.name}={getattr(self, setting.name)!r} says nothing of features moved by their mean",
                    remedy=f"leave {setting.name} out, or use unit trace",
                )

    @property
    def means_of(self) -> tuple[str, ...]:
        """The blocks of whose features the mean is asked for."""
        return tuple(dict.fromkeys((*read_numbers(self.on), *read_numbers(self.off)))) if self.unit == "mean" else ()

    def refuse(self, features: Mapping[str, int]) -> None:
        """Raises `UserError` where no feature is named, for a block that is not there, and for a number that its
        dictionary has not. features: block -> how many its dictionary has."""
        on, off = read_numbers(self.on), read_numbers(self.off)
        if not on and not off:
            raise UserError("no feature was chosen", remedy="name some, as in on='up.0.1:12,55'")
        for block, numbers in (*on.items(), *off.items()):
            if block not in features:
                raise UserError(
                    f"unknown block {block!r}{did_you_mean(block, features)}",
                    remedy=f"use blocks out of {', '.join(features)}",
                )
            beyond = [number for number in numbers if not 0 <= number < features[block]]
            if beyond:
                raise UserError(
                    f"{block} has no feature {shown(beyond[0])}", remedy=f"use numbers from 0 to {features[block] - 1}"
                )

    def plan(self, case: Case) -> Intervention:
        """Returns the intervention of the features `on` and `off`. Raises `UserError` as `refuse` does."""
        on, off = read_numbers(self.on), read_numbers(self.off)
        saes = {site: case.sae(site.block) for site in case.original if site.block in {*on, *off}}
        self.refuse({site.block: saes[site].num_features if site in saes else 0 for site in case.original})
        selected = {
            site: Selected(*(torch.tensor(side.get(site.block, ()), dtype=torch.long) for side in (on, off)))
            for site in saes
        }
        values = {site: _means(case, site, selected[site]) for site in saes} if self.unit == "mean" else None
        return transport(case, saes, selected, self, values)


def _means(case: Case, site: Site, selected: Selected) -> torch.Tensor:
    """Returns the mean of each feature of a site, `[F]`. Raises `UserError` where that of a selected one is zero."""
    if case.means is None:
        raise UserError("the case does not know how strong features are", remedy="use unit trace")
    means_f = case.means(site.block)
    for number in (*selected.on.tolist(), *selected.off.tolist()):
        if means_f[number] == 0:
            raise UserError(
                f"feature {number} of {site.block} has a mean of zero: it was never seen active",
                remedy="leave it out, or use unit trace",
            )
    return means_f
