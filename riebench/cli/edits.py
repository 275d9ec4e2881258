"""Verbs of edits: new-edits, import, and validate, which also checks entries of the leaderboard."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from riebench.cli.flags import Verb, word
from riebench.core.errors import UserError


@dataclass(frozen=True, kw_only=True)
class NewEdits:
    """Holds the words of `riebench new-edits`."""

    file: Path = word(positional=True)
    """The file to write: .yaml or .csv."""


def _new_edits(words: NewEdits) -> None:
    from riebench.edits.template import write_template

    print(write_template(words.file))


@dataclass(frozen=True, kw_only=True)
class Import:
    """Holds the words of `riebench import`."""

    kind: str = word(positional=True)
    """The format of the list: riebench or pie-bench."""
    file: Path = word(positional=True)
    """The list."""
    out: Path
    """A new folder for the edits, and their masks."""


def _import(words: Import) -> None:
    from riebench.edits.importers import format_imported, import_edits

    print(format_imported(import_edits(words.kind, words.file, words.out)))


@dataclass(frozen=True, kw_only=True)
class Validate:
    """Holds the words of `riebench validate`."""

    paths: tuple[Path, ...] = word(positional=True)
    """Edit sets, or folders with one entry or many."""
    backbone: str = ""
    """The backbone that edits are to suit (default: tinyworld where a prompt is of its grammar, else SDXL Turbo)."""


def _validate(words: Validate) -> None:
    wrong = total = 0
    for path in words.paths:
        for problems in _checked(path, words.backbone):
            for problem in problems:
                print(problem, file=sys.stderr)
            wrong, total = wrong + bool(problems), total + 1
    if wrong:
        raise UserError(f"{wrong} of {total} are not in order", remedy="mend what is named above")
    print(f"{total} in order")


def _checked(path: Path, backbone: str) -> Iterator[list[object]]:
    """Yields what is wrong with each entry in a folder, or with a set of edits."""
    if any(path.rglob("entry.json")):
        from riebench.leaderboard import entry_folders, validate

        for one in entry_folders(path):
            yield [f"{one}: {problem}" for problem in validate(one)]
    else:
        from riebench.backbones.table import BACKBONES
        from riebench.edits.checks import problems_of
        from riebench.edits.edit import path_of, read_placed
        from riebench.runs.edits import describe_splits, suits, usual_suits

        path = path_of(path)
        placed, problems = read_placed(path)
        edits = [one.edit for one in placed]
        found = BACKBONES.get(backbone) if backbone else None
        found, fits = (found, suits(found)) if found else usual_suits(edits)
        print(f"{path}: {len(edits)} edits ({describe_splits(edits)}), for {found.name}", file=sys.stderr)
        yield list(problems_of(path, placed, problems, fits))


VERBS = (
    Verb(
        "new-edits",
        "write an example of edits of your own, with comments",
        NewEdits,
        _new_edits,
        ("riebench new-edits mine.yaml", "riebench new-edits mine.csv"),
    ),
    Verb(
        "import",
        "make edits of a published list",
        Import,
        _import,
        (
            "riebench import riebench edits.json --out my-edits",
            "riebench import pie-bench mapping_file.json --out pie-edits",
        ),
    ),
    Verb(
        "validate",
        "check edits, or entries of the leaderboard against their own scores",
        Validate,
        _validate,
        ("riebench validate mine.yaml", "riebench validate data/leaderboard"),
    ),
)
