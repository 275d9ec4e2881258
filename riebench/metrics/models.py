"""The networks that metrics share, each loaded when a metric first asks for it. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from riebench.core.errors import UserError, did_you_mean
from riebench.core.memory import room_for
from riebench.metrics.networks.base import BATCH_SIZE, Description, Network
from riebench.metrics.networks.table import NETWORKS, other_clip

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class ScoringModels:
    """The networks that score the pictures of one family, by their keys: `models["clip"]` is loaded when it is first
    asked for.

    Raises `UserError` for an unknown family.
    """

    family: str = "tinyworld"
    """Family of judges (`Backbone.judges`): it decides which CLIP scores, and whether there is an oracle."""
    device: torch.device | str = "cpu"
    """Where the networks run; images may come from anywhere."""
    keep_marks: bool = False
    """Whether prompts keep their `[ ]` marks."""
    batch_size: int = BATCH_SIZE
    """Images and prompts that a network reads at once; fewer are filled up, so that a score does not depend on them."""
    clip_name: str = ""
    """"architecture/weights" of the open_clip model in the place of the family's CLIP; "" for the family's."""
    loaded: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)
    """Key -> network, of those that are loaded so far."""
    described: dict[str, Description] = field(default_factory=dict, repr=False, compare=False)
    """Key -> what was said of a network, of those that were asked for."""

    def __post_init__(self) -> None:
        if self.family not in NETWORKS:
            raise UserError(
                f"no metrics for backbones of the family {self.family!r}{did_you_mean(self.family, NETWORKS)}",
                remedy=f"use one of {', '.join(NETWORKS)}",
            )

    def __getitem__(self, key: str) -> Any:
        """Returns a network, loaded. Raises `UserError` where its weights are missing, there is no room for them or the
        family has none."""
        if key not in self.loaded:
            network = self.network(key)
            with room_for(f"{network.label}, which scores,", self.device, sum(w.gigabytes for w in network.weights)):
                self.loaded[key] = network.load(self.device, self.batch_size, self.keep_marks)
        return self.loaded[key]

    def describe(self, key: str) -> Description:
        """Returns what is known of a network, which is not loaded for it. Raises `UserError` where there is none."""
        if key not in self.described:
            self.described[key] = self.network(key).describe()
        return self.described[key]

    def forget(self) -> None:
        """Forgets every image and prompt that was read, of the networks loaded so far."""
        for network in self.loaded.values():
            network.forget()

    @cached_property
    def _networks(self) -> dict[str, Network]:
        """Returns the family's networks, by their keys."""
        others = (other_clip(self.clip_name),) if self.clip_name else ()
        return {network.key: network for network in (*NETWORKS[self.family], *others)}

    def network(self, key: str) -> Network:
        """Returns a network, which need not be loaded. Raises `UserError` where the family has none of that key."""
        if key not in self._networks:
            raise UserError(
                f"there is no network {key!r} for pictures of {self.family}", remedy="leave the metrics that use it out"
            )
        return self._networks[key]
