"""SAE features of one's own choice, by number: what an explorer of a dictionary wants to try."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from riebench.core.errors import UserError, did_you_mean
from riebench.core.values import shown
from riebench.generation.interventions import Intervention
from riebench.methods.method import Case
from riebench.methods.selection import Selected
from riebench.methods.transport import Transport, transport


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
    name: str = "chosen"
    sites: ClassVar[str] = "block"

    def __post_init__(self) -> None:
        super().__post_init__()
        read_numbers(self.on), read_numbers(self.off)

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
        return transport(case, saes, selected, self)
