"""All that a resumed training needs, stacks and their optimisers, is written whole here and read again exactly."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from riebench.core.errors import UserError
from riebench.core.files import replacing
from sae_models.architectures import Architecture
from sae_models.normalisation import Normalisation
from sae_models.stack import Stack
from sae_models.training_config import COMPUTE, TrainConfig

STATE_FILE = "training.pt"
STACK_WEIGHTS = 2**23  # of a decoder, at most, in a stack: larger products gain nothing, and leave a CPU's cache
ADAM_EPS = 6.25e-10  # (Gao et al. 2024, appendix A)


def stacks_of(architectures: Sequence[Architecture]) -> list[list[int]]:
    """Returns the places in the list of those that are trained as one stack: they differ by the seed alone."""
    alike: dict[Architecture, list[int]] = {}
    for place, architecture in enumerate(architectures):
        alike.setdefault(dataclasses.replace(architecture, seed=0), []).append(place)
    stacks = []
    for one, places in alike.items():
        size = max(1, STACK_WEIGHTS // (one.width * one.num_features))
        stacks += [places[first : first + size] for first in range(0, len(places), size)]
    return stacks


@dataclass
class Training:
    """This is the training of autoencoders after some steps."""

    step: int
    rows: int
    places: list[list[int]]
    """Where each stack's members stand among the architectures."""
    stacks: list[Stack]
    optimisers: list[torch.optim.Adam]
    normalisations: list[Normalisation]
    """One a block."""

    @staticmethod
    def of(architectures: Sequence[Architecture], config: TrainConfig, normalisations: list[Normalisation]) -> Training:
        """Returns a training before its first step, with weights of zeros."""
        places = stacks_of(architectures)
        stacks = [Stack([architectures[place] for place in each], COMPUTE[config.compute]) for each in places]
        optimisers = [torch.optim.Adam(stack.parameters(), lr=config.lr, eps=ADAM_EPS, fused=True) for stack in stacks]
        return Training(0, 0, places, stacks, optimisers, normalisations)

    def to(self, device: torch.device) -> None:
        """Moves everything to a device, in place."""
        for stack, optimiser in zip(self.stacks, self.optimisers, strict=True):
            stack.to(device)
            stack.dead = [dead.to(device) for dead in stack.dead]
            optimiser.load_state_dict(optimiser.state_dict())  # which puts the moments where the parameters are
        self.normalisations = [
            Normalisation(**{name: _on(value, device) for name, value in each.state().items()})
            for each in self.normalisations
        ]

    def in_order(self, values: list[list]) -> list:
        """Returns the values of each stack's members, in the order of the architectures."""
        placed = {
            place: value
            for places, each in zip(self.places, values, strict=True)
            for place, value in zip(places, each, strict=True)
        }
        return [placed[place] for place in range(len(placed))]


def _on(value: Any, device: torch.device) -> Any:
    return value.to(device) if isinstance(value, Tensor) else value


def description(architectures: Sequence[Architecture], config: TrainConfig) -> dict[str, str]:
    """Returns name -> value of all that decides a training, as a state file keeps it."""
    settings = {name: repr(value) for name, value in asdict(config).items() if name != "compile"}
    return settings | {f"architecture {number}": repr(each) for number, each in enumerate(architectures)}


def write_state(path: Path, training: Training, architectures: Sequence[Architecture], config: TrainConfig) -> None:
    """Writes a state file. Raises `UserError` where it cannot be written; the one before stays."""
    state = {
        "description": description(architectures, config),
        "step": training.step,
        "rows": training.rows,
        "stacks": [stack.state_dict() for stack in training.stacks],
        "optimisers": [optimiser.state_dict() for optimiser in training.optimisers],
        "normalisations": [normalisation.state() for normalisation in training.normalisations],
    }
    with replacing(path) as temporary:
        torch.save(state, temporary)


def read_state(path: Path, architectures: Sequence[Architecture], config: TrainConfig) -> Training:
    """Reads what `write_state` wrote, on the CPU. Raises `UserError` for a broken file or one of another
    description."""
    state = _load(path)
    found, wanted = state["description"], description(architectures, config)
    if found != wanted:
        differing = ", ".join(
            f"{name}={found.get(name)}" for name in wanted | found if found.get(name) != wanted.get(name)
        )
        raise UserError(
            f"{path} is of a run with {differing}", remedy="resume with the same configuration or take another folder"
        )
    training = Training.of(architectures, config, [Normalisation(**each) for each in state["normalisations"]])
    training.step, training.rows = state["step"], state["rows"]
    for stack, optimiser, weights, moments in zip(
        training.stacks, training.optimisers, state["stacks"], state["optimisers"], strict=True
    ):
        stack.load_state_dict(weights)
        optimiser.load_state_dict(moments)
    return training


def saved_step(folder: Path) -> int:
    """Returns the step from which a training in the folder goes on; 0 where nothing was saved. Raises as
    `read_state`."""
    path = Path(folder) / STATE_FILE
    return _load(path, mmap=True)["step"] if path.exists() else 0


def _load(path: Path, mmap: bool = False) -> dict[str, Any]:
    """Reads a state file. mmap: no tensor is read before it is used."""
    try:
        state = torch.load(path, weights_only=True, map_location="cpu", mmap=mmap)
        state["description"], state["step"]
    except Exception as error:  # a broken file raises whatever the unpickler meets first
        raise UserError(
            f"{path} cannot be resumed from ({type(error).__name__})", remedy="delete that file to train from nothing"
        ) from error
    return state
