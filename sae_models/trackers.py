"""The numbers of a training go to trackers besides its log: known by name, or functions of one's own."""

from __future__ import annotations

import importlib
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TypeVar

from riebench.core.errors import UserError, did_you_mean
from riebench.core.files import write_text

#: Takes a step and the numbers of it, by name: "ev/0" is the explained variance of the first autoencoder.
Tracker = Callable[[int, Mapping[str, float]], None]

T = TypeVar("T")

WANDB_FILE = "wandb-run.txt"  # the id of the run that goes on when the training does


@contextmanager
def open_trackers(
    trackers: Sequence[str | Tracker], folder: Path | None, step: int, settings: Mapping[str, str]
) -> Iterator[Tracker]:
    """Opens one tracker that hands on to all of them; "wandb" and "tensorboard", known by name, are closed at the end.

    folder: where these two keep their files. step: from which the training goes on; what they have of later ones goes,
    or stays and is not added to. settings: of the training, shown beside the curves. One that fails is said in a line
    and left out from then on. Raises `UserError` for an unknown name, a package that is missing, and names without a
    folder.
    """
    openers = {number: _find(name, folder) for number, name in enumerate(trackers) if isinstance(name, str)}
    live: dict[int, Tracker] = {}

    def attempt(number: int, action: Callable[..., T | None], *arguments: object) -> T | None:
        try:
            return action(*arguments)
        except Exception as error:  # whatever a network or somebody's function raises
            live.pop(number, None)
            name = trackers[number] if number in openers else getattr(trackers[number], "__name__", number)
            why = " ".join(f"{type(error).__name__}: {error}".split())
            print(f"riebench: tracker {name} fails, and is left out: {why}", file=sys.stderr, flush=True)
            return None

    def track(step: int, numbers: Mapping[str, float]) -> None:
        for number, tracker in list(live.items()):
            attempt(number, tracker, step, numbers)

    with ExitStack() as closing:
        for number, tracker in enumerate(trackers):
            if isinstance(tracker, str):
                context = openers[number](step, settings)
                opened = attempt(number, context.__enter__)
                if opened is None:
                    continue
                live[number] = opened
                closing.push(partial(attempt, number, context.__exit__))
            else:
                live[number] = tracker
        yield track


@contextmanager
def _wandb(package: ModuleType, folder: Path, step: int, settings: Mapping[str, str]) -> Iterator[Tracker]:
    """Opens a run of Weights & Biases, with project and login out of its environment variables. Steps that it has
    already it does not take again."""
    file = folder / WANDB_FILE
    if step == 0 or not file.exists():
        write_text(file, uuid.uuid4().hex)
    name = "/".join(folder.absolute().parts[-2:])
    with package.init(id=file.read_text(), resume="allow", dir=str(folder), name=name, config={**settings}) as run:
        yield lambda step, numbers: run.log({**numbers}, step=step)


@contextmanager
def _tensorboard(package: ModuleType, folder: Path, step: int, settings: Mapping[str, str]) -> Iterator[Tracker]:
    with package.SummaryWriter(str(folder), purge_step=step + 1) as writer:
        if step == 0:
            writer.add_text("settings", "\n".join(f"- {name}: `{value}`" for name, value in settings.items()), step)

        def track(step: int, numbers: Mapping[str, float]) -> None:
            for name, value in numbers.items():
                writer.add_scalar(name, value, step)
            writer.flush()

        yield track


#: Name -> the module that is imported for it, and what opens it.
NAMED = {"wandb": ("wandb", _wandb), "tensorboard": ("torch.utils.tensorboard", _tensorboard)}


def _find(name: str, folder: Path | None) -> Callable[..., AbstractContextManager[Tracker]]:
    """Returns what opens a tracker, given step and settings, with its package imported."""
    if name not in NAMED:
        raise UserError(
            f"there is no tracker {name!r}{did_you_mean(name, NAMED)}",
            remedy=f"use {' or '.join(NAMED)}, or give a function of step and numbers",
        )
    if folder is None:
        raise UserError(f"{name} keeps files, and has no folder", remedy="train in a folder")
    module, opener = NAMED[name]
    try:
        return partial(opener, importlib.import_module(module), Path(folder))
    except ImportError as error:
        raise UserError(f"{name} is not installed", remedy='pip install "riebench[tracking]"') from error
