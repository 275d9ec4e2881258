"""An entry of the leaderboard: a folder that says what one method does on one backbone. Keys: docs/leaderboard.md."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache, cached_property
from importlib import resources
from pathlib import Path

import jsonschema
import pandas as pd

from riebench.analysis.frames import read_scores
from riebench.core.errors import UserError
from riebench.core.files import read_json_value
from riebench.core.scores import CASE, NOOP, SETTING, Score, Setting, score_from_words

SCHEMA = 1
ENTRY_FILE, SCORES_FILE, IMAGES_FOLDER = "entry.json", "scores.parquet", "images"
#: What the scores of every entry hold beside its own method: no change, the ceiling, and features chosen by lot.
CONTROLS = (NOOP, "oracle-prompt", "random")
LONGEST = 160  # characters of a message about the schema


@dataclass(frozen=True)
class Entry:
    """An entry whose `entry.json` is of the schema. Whether it is true is for `riebench.leaderboard.validate`."""

    folder: Path
    content: dict
    """All of `entry.json`."""

    @property
    def name(self) -> str:
        """Returns the name of the entry, which is that of its folder."""
        return self.content["name"]

    @property
    def backbone(self) -> str:
        """Returns the name of the backbone that it was run on."""
        return self.content["backbone"]

    @property
    def mode(self) -> str:
        """Returns the mode of the run, strict or reference."""
        return self.content["mode"]

    @property
    def setting(self) -> Setting:
        """Returns the method on all blocks, which the entry is ranked by."""
        row = self.content["aggregates"]["overall"]
        return Setting(row["method"], float(row["strength"]), row["blocks"])

    @property
    def is_control(self) -> bool:
        """Returns whether its method is one of `CONTROLS`."""
        return self.content["method"]["name"] in CONTROLS

    @cached_property
    def metrics(self) -> dict[str, Score]:
        """Returns metric -> what is said of it."""
        return {words["name"]: score_from_words(words) for words in self.content["metrics"]}

    @cached_property
    def scores(self) -> pd.DataFrame:
        """Returns all rows of `scores.parquet`. Raises `UserError` where it cannot be read, or is a link."""
        if linked(self.folder, SCORES_FILE):
            raise UserError(f"{self.folder / SCORES_FILE} is a link", remedy="put the file itself there")
        return read_scores(self.folder / SCORES_FILE)

    @cached_property
    def values(self) -> pd.DataFrame:
        """Returns the method's own scores on its valid cases: rows (category, edit, seed), a column for each metric."""
        rows = self.scores[(self.scores[SETTING] == list(self.setting)).all(axis=1) & (self.scores["status"] == "ok")]
        return rows.set_index(CASE)[[name for name in self.metrics if name in rows]]


def read_entry(path: Path) -> Entry:
    """Returns the entry in a folder, or of its `entry.json`.

    Raises `UserError` where it cannot be read, is of another version of the schema, or breaks the schema; then with
    all that is wrong.
    """
    folder = entry_folder(path)
    content = read_content(folder)
    problems = schema_problems(content)
    if problems:
        raise UserError(f"entry {folder}: {'; '.join(problems)}", remedy="mend it, or submit the run again")
    return Entry(folder, content)


def read_entries(root: Path) -> list[Entry]:
    """Returns the entries below a folder, by backbone and name. Raises `UserError` where there is none, or one is
    broken."""
    return [read_entry(folder) for folder in entry_folders(root)]


def entry_folders(root: Path) -> list[Path]:
    """Returns the folders of the entries below a folder, by backbone and name, or that folder where it is one itself.

    Raises `UserError` where there is none.
    """
    root = entry_folder(root)
    files = [root / ENTRY_FILE] if (root / ENTRY_FILE).is_file() else sorted(root.rglob(ENTRY_FILE))
    found = [file.parent for file in files if not file.parent.name.startswith(".")]  # hidden: one that is being written
    if not found:
        raise UserError(f"there is no entry in {root}", remedy="write one with `riebench submit RUN`")
    return found


def linked(folder: Path, name: str) -> bool:
    """Returns whether a file of an entry is a link, or lies in one, so that it may be none of the entry's own."""
    folder = entry_folder(folder).resolve()
    return (folder / name).resolve() != folder / name


def entry_folder(path: Path) -> Path:
    """Returns the folder of an entry that is given as its folder or as its `entry.json`."""
    path = Path(path)
    return path.parent if path.name == ENTRY_FILE else path


def read_content(folder: Path) -> dict:
    """Returns the JSON object of an entry. Raises `UserError` where it cannot be read, holds a number that is not
    finite, or is of another version of the schema."""
    path = entry_folder(folder) / ENTRY_FILE
    if not path.is_file():
        raise UserError(f"there is no entry {path}", remedy="write one with `riebench submit RUN`")
    if linked(folder, ENTRY_FILE):
        raise UserError(f"{path} is a link", remedy="put the file itself there")
    content = read_json_value(path, "entry", finite=True, remedy="submit the run again")
    version = content.get("schema") if isinstance(content, dict) else None
    if version != SCHEMA:
        raise UserError(
            f"entry {path} is of schema {version!r}, this version of riebench reads {SCHEMA}",
            remedy="submit the run again with this version",
        )
    return content


def schema_problems(content: dict) -> list[str]:
    """Returns where the content of an `entry.json` breaks the schema, a line each."""
    found = sorted(_validator().iter_errors(content), key=lambda error: [str(part) for part in error.absolute_path])
    return [f"{dotted(error.absolute_path) or 'the entry'}: {_shortened(error.message)}" for error in found]


def dotted(path: Iterable[str | int]) -> str:
    """Returns where in an entry something stands, as in `images.3.scores`."""
    return ".".join(map(str, path))


def _shortened(message: str) -> str:
    return message if len(message) <= LONGEST else f"{message[: LONGEST // 2]} ... {message[-LONGEST // 2 :]}"


@cache
def _validator() -> jsonschema.Draft202012Validator:
    text = resources.files(__package__).joinpath("entry.schema.json").read_text(encoding="utf-8")
    return jsonschema.Draft202012Validator(json.loads(text))
