"""Edits: what is to change, said as two prompts and where each image may change. Read, write, validate."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from riebench import files
from riebench.errors import UserError, did_you_mean


@dataclass(frozen=True)
class Category:
    """One of the nine kinds of edit (protocol §4)."""

    id: int
    name: str
    title: str


CATEGORIES = tuple(
    Category(number, name, name.replace("_", " "))
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


@dataclass(frozen=True)
class Edit:
    """One item of the benchmark. Regions are phrases: a noun, `everything`, `background`, or `not <noun>`.

    Raises `UserError` for an unknown category or an empty field.
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
        if self.category not in CATEGORY_NAMES:
            raise UserError(
                f"edit {self.id!r}: unknown category {self.category!r}{did_you_mean(self.category, CATEGORY_NAMES)}",
                remedy=f"use one of {', '.join(CATEGORY_NAMES)}",
            )
        for name in ("id", "original_prompt", "edited_prompt", "original_region", "edited_region"):
            if not str(getattr(self, name)).strip():
                raise UserError(f"edit {self.id!r}: {name} is empty", remedy=f"give it a {name}")


def strip_marks(prompt: str) -> str:
    """The prompt without the `[ ]` that mark its edited words, single-spaced."""
    return " ".join(prompt.replace("[", "").replace("]", "").split())


def write_edits(edits: list[Edit], path: Path) -> None:
    """Writes JSON lines, one edit a line, keys sorted."""
    files.write_text(path, "".join(json.dumps(asdict(edit), sort_keys=True) + "\n" for edit in edits))


def read_edits(path: Path) -> list[Edit]:
    """The edits of a JSON-lines file, or of every `*.jsonl` in a folder, in the order of the categories.

    Raises `UserError` with file, line and reason for a missing file, a broken line, an unknown key or a repeated id.
    """
    path = Path(path)
    parts = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
    if not parts or not path.exists():
        raise UserError(f"there are no edits at {path}", remedy="give a .jsonl file or a folder of them")
    edits = [edit for part in parts for edit in _read_file(part)]
    seen: set[str] = set()
    for edit in edits:
        if edit.id in seen:
            raise UserError(f"{path}: the id {edit.id!r} stands twice", remedy="ids are unique over a set of edits")
        seen.add(edit.id)
    return sorted(edits, key=lambda edit: CATEGORY_NAMES.index(edit.category))


def _read_file(path: Path) -> list[Edit]:
    known = [f.name for f in fields(Edit)]
    edits = []
    for where, item in files.read_json_lines(path):
        for key in item:
            if key not in known:
                raise UserError(f"{where}: unknown key {key!r}{did_you_mean(key, known)}", remedy="mend or remove it")
        try:
            edits.append(Edit(**item))
        except TypeError as error:
            raise UserError(f"{where}: {error}", remedy=f"an edit has {', '.join(known[:6])}") from error
        except UserError as error:
            raise UserError(f"{where}: {error}") from error
    return edits


def load_edits(name: str | Path = "tinyworld") -> list[Edit]:
    """The edits of a shipped set (`riebench ls edits`) or of a path."""
    shipped = files.data_folder() / "edits" / str(name)
    if not Path(name).exists() and not shipped.is_dir():
        known = shipped_sets()
        raise UserError(
            f"there is no edit set {str(name)!r}{did_you_mean(name, known)}",
            remedy=f"use one of {', '.join(known)} or a path",
        )
    return read_edits(shipped if shipped.is_dir() else Path(name))


def shipped_sets() -> list[str]:
    return sorted(folder.name for folder in (files.data_folder() / "edits").iterdir() if folder.is_dir())
