"""Verbs of the embedded world: tinyworld train, evaluate, edits."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from riebench.cli.flags import Verb
from riebench.core.json_text import json_text
from riebench.core.values import Range, Seed

NAME, SUMMARY = "tinyworld", "make or judge the embedded world"


@dataclass(frozen=True, kw_only=True)
class Train:
    """Holds the words of `riebench tinyworld train`."""

    out: Path
    """Folder for weights and checkpoints."""
    world: str = "planted"
    """Which words enter in which block: planted; permuted, in other blocks; or everywhere, all in all. The latter two
    have one step, and the parts vae, turbo and dictionaries. Or flux: a FLUX pipeline without roles, of the parts vae
    and flux."""
    only: tuple[str, ...] = ()
    """The parts, comma-separated: vae, base, turbo, oracle, grounder, clip, dictionaries, flux (default: all that the
    world has)."""
    seed: Seed = 0
    """Seed of all that is random."""
    device: str = "auto"
    """The device: auto, cpu or cuda."""


def _train(words: Train) -> None:
    from riebench.tinyworld_build.train import train_world

    train_world(words.out, words.only, words.world, seed=words.seed, device=words.device)


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Holds the words of `riebench tinyworld evaluate`."""

    json: bool = False
    """Print JSON."""
    count: Annotated[int, Range(64, 10**6)] = 512
    """Pictures for each figure."""
    device: str = "auto"
    """The device: auto, cpu or cuda."""


def _evaluate(words: Evaluate) -> None:
    from riebench.tinyworld_build.evaluate import evaluate_world, format_evaluation

    found = evaluate_world(words.count, words.device)
    print(json_text(found, indent=2) if words.json else format_evaluation(found))


@dataclass(frozen=True, kw_only=True)
class Edits:
    """Holds the words of `riebench tinyworld edits`."""

    out: Path
    """Folder for one file a category."""


def _edits(words: Edits) -> None:
    from riebench.tinyworld_build.edit_set import write_edit_set

    for path in write_edit_set(words.out):
        print(path)


VERBS = (
    Verb(
        f"{NAME} train",
        "train every model of tinyworld from nothing; resumable",
        Train,
        _train,
        ("riebench tinyworld train --out world", "riebench tinyworld train --out world --world permuted"),
    ),
    Verb(
        f"{NAME} evaluate",
        "judge the shipped models against the renderer's truth",
        Evaluate,
        _evaluate,
        ("riebench tinyworld evaluate", "riebench tinyworld evaluate --json --count 64"),
    ),
    Verb(
        f"{NAME} edits",
        "write tinyworld's edit set, the same bytes every time",
        Edits,
        _edits,
        ("riebench tinyworld edits --out edits", "riebench tinyworld edits --out data/edits/tinyworld"),
    ),
)
