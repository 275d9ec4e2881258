"""All importers go through a list by this, item by item, so that nothing is left out without being named."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from riebench.core.errors import UserError
from riebench.core.text import parse_json, read_text
from riebench.edits.edit import CATEGORIES, Edit, strip_marks
from riebench.edits.files import Problem
from riebench.edits.phrases import parse_phrase

L = TypeVar("L", list, dict)

RANDOM = "0"
DROPPED = "of category 0 (random), which the benchmark leaves out"  # protocol §4
CATEGORY_OF = {str(category.id): category.name for category in CATEGORIES}


@dataclass(frozen=True)
class Imported:
    """The outcome of a foreign list. Every item of it is in one of the three."""

    edits: tuple[Edit, ...]
    refused: tuple[Problem, ...] = ()
    """The items that could not be taken, each with its reason."""
    dropped: Mapping[str, int] = field(default_factory=dict)
    """Reason -> number of items that are left out on purpose."""


class Refused(Exception):
    """This is raised for an item that cannot be taken: `what` is wrong with the value of a field."""

    def __init__(self, name: str, value: object, what: str, remedy: str = "mend the item, or go on without it") -> None:
        super().__init__(what)
        self.name, self.value, self.what, self.remedy = name, str(value)[:80], what, remedy


def read_list(path: Path, kind: type[L], what: str) -> L:
    """Returns the JSON list or object in a file. kind: which of the two. Raises `UserError` where it holds something
    else, or a key twice."""
    try:
        value = parse_json(read_text(path))
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{path} cannot be read as JSON: {error}", remedy=f"give {what}") from error
    if not isinstance(value, kind):
        raise UserError(f"{path} holds a {type(value).__name__}", remedy=f"give {what}")
    return value


def import_items(
    path: Path, items: Iterable[tuple[str, object]], make: Callable[[str, Mapping[str, object]], Edit]
) -> Imported:
    """Returns what came of (name, item) pairs. make: the edit of an item; it may raise `Refused` or `UserError`."""
    edits: dict[str, Edit] = {}
    refused: list[Problem] = []
    dropped: Counter[str] = Counter()
    for name, item in items:
        try:
            if not isinstance(item, Mapping):
                raise Refused("item", item, "is no JSON object")
            if str(item.get("editing_type_id", "")) == RANDOM:
                dropped[DROPPED] += 1
                continue
            edit = make(name, item)
            if edit.id in edits:
                raise Refused("id", edit.id, "stands twice")
            edits[edit.id] = edit
        except Refused as error:
            said = f"{error.name} {error.value!r} {error.what}"
            refused.append(Problem(said, error.remedy, str(path), id=name, field=error.name, value=error.value))
        except UserError as error:
            said, _, remedy = str(error).partition(" -> ")
            refused.append(Problem(said, remedy, file=str(path), id=name))
    return Imported(tuple(edits.values()), tuple(refused), dict(dropped))


def category_of(item: Mapping[str, object]) -> str:
    """Returns the category that an item's number stands for. Raises `Refused` where it is none from 1 to 9."""
    number = item.get("editing_type_id", "")
    name = CATEGORY_OF.get(str(number)) if isinstance(number, int | str) and not isinstance(number, bool) else None
    if name is None:
        raise Refused("editing_type_id", number, "is no category from 1 to 9")
    return name


def prompts_of(item: Mapping[str, object]) -> tuple[str, str]:
    """Returns both prompts, with the `[ ]` that mark the edited words. Blanks within are single; those at the end stay
    as they were published, so that a prompt is found again in the published list. Raises `Refused` where one is no text
    or empty, or they are the same without marks."""
    names = ("original_prompt", "editing_prompt")
    for name in names:
        text_of(item, name)
    original, edited = (re.sub(r"\s+(?=\S)", " ", str(item[name])).removeprefix(" ") for name in names)
    if strip_marks(original) == strip_marks(edited):
        raise Refused("editing_prompt", edited, "is the same as original_prompt")
    return original, edited


def text_of(item: Mapping[str, object], name: str, *, needed: bool = True) -> str:
    """Returns the text of a field, "" where it is not needed and not there. Raises `Refused` where it is no text, or
    needed and empty."""
    value = item.get(name, "")
    if not isinstance(value, str) or needed and not strip_marks(value):
        raise Refused(name, value, "is no text" if not isinstance(value, str) else "is empty")
    return value.strip()


def region_of(name: str, text: str) -> str:
    """Returns a published region phrase in our words: `#everything` is `everything`, `~X` is `not X`; nouns stay.

    Raises `Refused` for another mark, and for a phrase that names no place in the picture.
    """
    phrase = re.sub(r"^(\s*~)+\s*", lambda marks: "not " * marks[0].count("~"), text).strip()
    if phrase.lower().endswith("#everything"):
        phrase = re.sub(r"#everything$", "everything", phrase, flags=re.IGNORECASE)
    if "#" in phrase or "~" in phrase:
        raise Refused(name, text, "has a mark that is neither #everything nor ~ before a phrase")
    try:
        parsed = parse_phrase(phrase)
    except UserError:
        raise Refused(name, text, "names nothing") from None
    if parsed.file is not None or not parsed.nouns and parsed.complement:
        raise Refused(name, text, "names no place in the picture")
    return phrase
