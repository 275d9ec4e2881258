"""Edits are prompt pairs with where each image may change; they are read, written and hashed here."""

from __future__ import annotations

import hashlib
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from difflib import get_close_matches
from pathlib import Path

from riebench.core import files
from riebench.core.errors import UserError, did_you_mean, shown
from riebench.core.json_text import json_text
from riebench.core.text import one_line
from riebench.edits.files import Problem, Row, error_of, holds_edits, read_content


@dataclass(frozen=True)
class Category:
    """One of the nine kinds of edit (protocol §4)."""

    id: int
    name: str
    title: str
    region: str = "own"
    """Whose region counts: "own", each image its own; or that of the "original" or the "edited" image, on both."""


#: Category -> whose region counts, of those where it is not each image's own.
_SHARED_REGION = {"add_object": "edited", "delete_object": "original"}
CATEGORIES = tuple(
    Category(number, name, name.replace("_", " "), _SHARED_REGION.get(name, "own"))
    for number, name in enumerate(
        (
            "change_object",
            "add_object",
            "delete_object",
            "change_content",
            "change_pose",
            "change_colour",
            "change_material",
            "change_background",
            "change_style",
        ),
        start=1,
    )
)
CATEGORY_NAMES = tuple(category.name for category in CATEGORIES)
#: What may also be asked for in place of all edits: they are fixed in the `split` tag of each edit.
SPLITS = ("dev", "test")
_NAME = re.compile(r"[a-z][a-z0-9_]*")
_SLIP = 0.9  # likeness (difflib's ratio) from which on a new category's name is taken for a slip of the pen
_MASK = re.compile(r"(?P<before>\s*(?:(?:~|(?i:not)(?=\s))\s*)*mask:)\s*(?P<file>.*\S)\s*")


@dataclass(frozen=True)
class Edit:
    """One item of the benchmark. Regions are phrases: nouns, `everything`, `background`, `mask:FILE`, or `not` these.

    A category is one of the nine or one of one's own, which a file of edits has to declare. Raises `UserError` for a
    category that is no name or nearly one of the nine, and for a field that is empty or no text.
    """

    id: str
    category: str
    original_prompt: str
    edited_prompt: str
    original_region: str
    edited_region: str
    instruction: str = ""
    tags: dict[str, str] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        problems = list(_faults({name: getattr(self, name) for name in _KEYS}))
        if problems:
            said = "; ".join(problem.what for problem in problems)
            raise UserError(f"edit {self.id!r}: {said}", remedy="; ".join(problem.remedy for problem in problems))


_REQUIRED = ("id", "category", "original_prompt", "edited_prompt", "original_region", "edited_region")
_KEYS = tuple(f.name for f in fields(Edit))


@dataclass(frozen=True)
class Placed:
    """An edit, and where it was read."""

    edit: Edit
    file: str
    line: int


def region_of(category: str) -> str:
    """Returns whose region counts in a category (`Category.region`); in one of one's own, each image's own."""
    return next((one.region for one in CATEGORIES if one.name == category), "own")


def strip_marks(prompt: str) -> str:
    """Returns the prompt without the `[ ]` that mark its edited words, single-spaced."""
    return " ".join(prompt.replace("[", "").replace("]", "").split())


def categories_of(edits: Sequence[Edit]) -> tuple[str, ...]:
    """Returns the categories of edits in the order of tables: the nine first, then one's own as they first appear."""
    found = dict.fromkeys(edit.category for edit in edits)
    return (
        *(name for name in CATEGORY_NAMES if name in found),
        *(name for name in found if name not in CATEGORY_NAMES),
    )


def split_of(edits: Sequence[Edit], split: str) -> list[Edit]:
    """Returns the edits of a split: dev (to choose strengths on), test (to report on), or all; "" is test where they
    have splits, and else all.

    Raises `UserError` for another word, and where the edits have no such split.
    """
    if not split:
        split = "test" if any("split" in edit.tags for edit in edits) else "all"
    if split == "all":
        return list(edits)
    if split not in SPLITS:
        raise UserError(f"unknown split {split!r}{did_you_mean(split, SPLITS)}", remedy="use dev, test or all")
    found = [edit for edit in edits if edit.tags.get("split") == split]
    if not found:
        raise UserError(
            f"no edit belongs to the split {split!r}", remedy="ask for all, or give edits a tag `split`: dev or test"
        )
    return found


def edit_sha256(edit: Edit) -> str:
    """Returns the sha256 of what an edit is, in hex: category, prompts and regions; not id, instruction and tags.

    A mask counts by its file's name, wherever its folder lies; its bytes are the plan's to count.
    """
    content = [edit.category, edit.original_prompt, edit.edited_prompt]
    content += [
        _with_mask(phrase, lambda file: Path(file).name) for phrase in (edit.original_region, edit.edited_region)
    ]
    return hashlib.sha256(json_text(content).encode()).hexdigest()


def set_sha256(edits: Sequence[Edit]) -> str:
    """Returns the sha256 of the edits' hashes in hex, in whatever order the edits are."""
    return hashlib.sha256("\n".join(sorted(map(edit_sha256, edits))).encode()).hexdigest()


def mask_of(phrase: str) -> Path | None:
    """Returns the mask file that a region phrase names; None where it names none."""
    found = _MASK.fullmatch(phrase)
    return Path(found["file"]) if found else None


def write_edits(edits: Sequence[Edit], path: Path) -> None:
    """Writes JSON lines, one edit a line, keys sorted. Masks in the file's folder are named from there."""
    folder = Path(path).resolve().parent
    lines = []
    for edit in edits:
        regions = {
            name: _with_mask(getattr(edit, name), lambda file: _from(folder, Path(file)))
            for name in ("original_region", "edited_region")
        }
        lines.append(json_text(asdict(edit) | regions, sort_keys=True) + "\n")
    files.write_text(path, "".join(lines))


def read_edits(path: Path) -> list[Edit]:
    """Returns the edits of a YAML, JSON-lines or CSV file, or of all of these in a folder, in the order of the
    categories.

    Masks that are not absolute are looked for beside the file. Raises one `UserError` for all that is wrong, with file
    and line of each: what cannot be read, unknown keys, missing or empty fields, undeclared categories, repeated ids.
    """
    placed, problems = read_placed(path)
    problems += repeated_ids(placed)
    if problems:
        raise error_of(path, problems)
    return by_category(placed)


def by_category(placed: Sequence[Placed]) -> list[Edit]:
    """Returns the edits in the order of the categories, in each as they stand in the files."""
    edits = [one.edit for one in placed]
    order = categories_of(edits)
    return sorted(edits, key=lambda edit: order.index(edit.category))


def read_placed(path: Path) -> tuple[list[Placed], list[Problem]]:
    """Returns the edits at a path in the order of the files, and what is wrong with those that are left out.

    Raises `UserError` where there is nothing to read.
    """
    content = read_content(path, _KEYS)
    allowed = (*CATEGORY_NAMES, *content.categories)
    placed, problems = [], list(content.problems)
    for row in content.rows:
        values = {key: value for key, value in row.values.items() if key in _KEYS}
        wrong = [*_missing(values), *_faults(values), *_undeclared(values.get("category"), allowed)]
        if wrong:
            said = values.get("id", "")
            known = said if isinstance(said, str) else ""
            problems += [replace(problem, file=row.file, line=row.line, id=known) for problem in wrong]
            continue
        try:
            placed.append(Placed(_edit_of(row, values), row.file, row.line))
        except UserError as error:
            problems.append(Problem(error.message, error.remedy, row.file, row.line, str(values["id"])))
    return placed, sorted(problems, key=lambda problem: (problem.file, problem.line))


def repeated_ids(placed: Sequence[Placed]) -> list[Problem]:
    """Returns a problem for each edit whose id an edit before it has."""
    seen: dict[str, Placed] = {}
    problems = []
    for one in placed:
        first = seen.setdefault(one.edit.id, one)
        if first is not one:
            where = f", first in {first.file}, line {first.line}" if first.line else ""
            said = f"the id {one.edit.id!r} stands twice{where}"
            remedy = "ids are unique over a set of edits"
            problems.append(Problem(said, remedy, one.file, one.line, one.edit.id, "id", one.edit.id))
    return problems


def load_edits(name: str | Path = "tinyworld") -> list[Edit]:
    """Returns the edits of a shipped set (`riebench ls edits`) or a path. Raises `UserError` as `read_edits` does."""
    return read_edits(path_of(name))


def path_of(name: str | Path) -> Path:
    """Returns where the edits of a shipped set or of a path are; a text that is the name of a shipped set means that
    set, a `Path` never does. Raises `UserError` where there are none."""
    known = shipped_sets()
    if isinstance(name, str) and name in known:
        return files.data_folder() / "edits" / name
    path = files.named_path(name)
    if not path.exists():
        raise UserError(
            f"there is no edit set {str(name)!r}{did_you_mean(path.name, known)}",
            remedy=f"use one of {', '.join(known)} or a path",
        )
    return path


def meant_edits(name: str, folder: Path = Path()) -> str:
    """Returns which edits a user means: the absolute path of those that lie there, seen from the folder, or else the
    name of a shipped set.

    Where both are, one's own are meant, and stderr is told so. A path without edits is returned as well.
    """
    path = Path(os.path.abspath(folder / files.named_path(name)))
    if name not in shipped_sets():
        return str(path)
    if not holds_edits(path) or path.samefile(path_of(name)):
        return name
    print(
        f"riebench: the edits {name!r} are those in {path}, not the shipped set of that name -> rename the folder, or "
        "go to another one, for the shipped set",
        file=sys.stderr,
    )
    return str(path)


def shipped_sets() -> list[str]:
    """Returns the names of the shipped edit sets, sorted."""
    return sorted(folder.name for folder in (files.data_folder() / "edits").iterdir() if folder.is_dir())


def _faults(values: Mapping[str, object]) -> Iterator[Problem]:
    """Yields what is wrong with the fields of an edit, those that are there."""
    for name, value in values.items():
        if name == "tags":
            if not isinstance(value, Mapping) or not all(isinstance(x, str) for pair in value.items() for x in pair):
                yield Problem(f"tags {shown(value)} are no names with texts", "write tags as name: text", field=name)
        elif not isinstance(value, str):
            yield Problem(f"{name} {shown(value)} is no text", "put it in quotes", field=name, value=shown(value))
        elif name == "id" and value != one_line(value):
            yield Problem(f"id {shown(value)} is no line of text", "leave out what is not shown", field=name)
        elif name in _REQUIRED and not value.strip():
            yield Problem(f"{name} is empty", "fill it in", field=name)
        elif name == "category" and value not in CATEGORY_NAMES:
            near = get_close_matches(value, CATEGORY_NAMES, n=1, cutoff=_SLIP)
            if near or not _NAME.fullmatch(value):
                said = f"unknown category {value!r}{did_you_mean(value, CATEGORY_NAMES)}"
                remedy = (
                    f"use one of {', '.join(CATEGORY_NAMES)}, or for one of your own a name of a-z, 0-9 and _ that is"
                )
                yield Problem(said, f"{remedy} not nearly one of these", field=name, value=value)


def _missing(values: Mapping[str, object]) -> Iterator[Problem]:
    for name in _REQUIRED:
        if name not in values:
            yield Problem(f"{name} is missing", f"an edit has {', '.join(_REQUIRED)}", field=name)


def _undeclared(category: object, allowed: Sequence[str]) -> Iterator[Problem]:
    if isinstance(category, str) and category not in allowed and not any(_faults({"category": category})):
        said = f"unknown category {category!r}{did_you_mean(category, allowed)}"
        remedy = (
            f"use one of {', '.join(allowed)}, or declare it under `categories:` in the YAML, or in a categories.yaml"
        )
        yield Problem(said, f"{remedy} beside the file", field="category", value=category)


def _edit_of(row: Row, values: Mapping[str, object]) -> Edit:
    """Returns the edit of values without faults, its masks named from the file's folder on. Raises `UserError` as
    `named_path` does."""
    tags = values.get("tags")
    texts = {name: value for name, value in values.items() if isinstance(value, str)}
    for name in ("original_region", "edited_region"):
        texts[name] = _with_mask(texts[name], lambda file: str(Path(row.file).parent / files.named_path(file)))
    return Edit(**texts, tags=dict(tags) if isinstance(tags, Mapping) else {})


def _with_mask(phrase: str, name: Callable[[str], str]) -> str:
    """Returns the phrase, its mask's file under another name."""
    found = _MASK.fullmatch(phrase)
    return found["before"] + name(found["file"]) if found else phrase


def _from(folder: Path, file: Path) -> str:
    """Returns the file as it is named from the folder, absolute where it lies elsewhere."""
    file = file.resolve()
    return (file.relative_to(folder) if file.is_relative_to(folder) else file).as_posix()
