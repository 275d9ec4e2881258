"""Edit files are read as rows of YAML, JSON-lines and CSV, each with its place; `edit` says what a row means."""

from __future__ import annotations

import csv
import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from riebench.core import files
from riebench.core.errors import UserError, did_you_mean

#: A file of this name declares categories for all edit files of its folder.
CATEGORIES_FILE = "categories.yaml"
TAG = "tags."  # what the column of a tag begins with in a CSV file
SHOWN = 8  # problems that an error tells of; `riebench validate` tells of all


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with edits, and what to do about it."""

    what: str
    """A sentence that names the field and what it holds."""
    remedy: str
    file: str = ""
    """"" for edits made in Python."""
    line: int = 0
    """Counted from 1; 0 where there is none."""
    id: str = ""
    """Of the edit, where it is known."""
    field: str = ""
    value: str = ""

    def __str__(self) -> str:
        place = f"{self.file}, line {self.line}" if self.line else self.file
        edit = f"edit {self.id!r}" if self.id else ""
        where = ", ".join(part for part in (edit, place) if part)
        return f"{where}: {self.what} -> {self.remedy}" if where else f"{self.what} -> {self.remedy}"


@dataclass(frozen=True)
class Row:
    """An edit as a file has it: keys and values, not yet looked at."""

    file: str
    line: int
    values: dict[str, object]


@dataclass(frozen=True)
class Content:
    """The content of edit files."""

    rows: tuple[Row, ...] = ()
    categories: tuple[str, ...] = ()
    """The categories that they declare beside the nine."""
    problems: tuple[Problem, ...] = ()
    """What could not be read as rows."""


def error_of(path: Path, problems: Collection[Problem]) -> UserError:
    """Returns one error that tells of the first problems of a set of edits, how many there are, and in which edits."""
    if len(problems) == 1:
        return UserError(str(*problems))
    shown = "; ".join(f"({i}) {problem}" for i, problem in enumerate(list(problems)[:SHOWN], start=1))
    rest = f"; and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
    ids = dict.fromkeys(problem.id for problem in problems if problem.id)
    of = f" (edits {', '.join(map(repr, ids))})" if rest and ids else ""
    return UserError(f"{path} has {len(problems)} problems{of}: {shown}{rest}")


def read_content(path: Path, known: Collection[str]) -> Content:
    """Returns the rows of an edit file, or of all edit files in a folder, sorted by name.

    known: the keys that a row may have; another one is a problem. A `categories.yaml` in the folder counts too. Raises
    `UserError` where there is no such file, or none that can hold edits.
    """
    path = Path(path)
    folder = path if path.is_dir() else path.parent
    declared = folder / CATEGORIES_FILE
    parts = [path] if path.is_file() else _files_in(path)
    if path.is_file() and path.suffix not in READERS:
        raise UserError(f"edits cannot be read from {path}", remedy=f"give a file that ends in {', '.join(READERS)}")
    if not parts:
        raise UserError(f"there are no edits at {path}", remedy=f"give a {', '.join(READERS)} file or a folder of them")
    found = [READERS[part.suffix](part) for part in parts if part != declared]
    if declared.is_file():
        found.append(_yaml(declared))
    rows = [row for content in found for row in content.rows]
    problems = [problem for content in found for problem in content.problems]
    problems += _unknown_keys(rows, known)
    categories = dict.fromkeys(name for content in found for name in content.categories)
    return Content(tuple(rows), tuple(categories), tuple(dict.fromkeys(problems)))


def _files_in(folder: Path) -> list[Path]:
    return sorted(file for file in folder.glob("*") if file.suffix in READERS and file.name != CATEGORIES_FILE)


def _unknown_keys(rows: Sequence[Row], known: Collection[str]) -> list[Problem]:
    """Returns each wrong column of a CSV file once, at its first row, and each wrong key elsewhere."""
    problems: dict[tuple, Problem] = {}
    for row in rows:
        for key in row.values:
            if key not in known:
                place = (row.file, 0 if row.file.endswith(".csv") else row.line, key)
                said, remedy = f"unknown key {key!r}{did_you_mean(key, known)}", f"the keys are {', '.join(known)}"
                value = str(row.values[key])
                problems.setdefault(place, Problem(said, remedy, row.file, row.line, field=str(key), value=value))
    return list(problems.values())


def _json_lines(path: Path) -> Content:
    rows, problems = [], []
    for number, line in enumerate(files.read_lines(path), start=1):
        if not line.strip():
            continue
        try:
            item = json.loads(line)
        except ValueError as error:
            problems.append(Problem(f"not JSON: {error}", "write one JSON object a line", str(path), number))
            continue
        if isinstance(item, dict):
            rows.append(Row(str(path), number, item))
        else:
            problems.append(Problem("not a JSON object", "write one JSON object a line", str(path), number))
    return Content(tuple(rows), problems=tuple(problems))


def _csv(path: Path) -> Content:
    reader = csv.reader((line.removeprefix("\ufeff") for line in files.read_lines(path)), strict=True)
    rows, problems, line = [], [], 1
    header: list[str] = []
    try:
        for cells in reader:
            line, number = reader.line_num + 1, line
            cells = [cell.strip() for cell in cells]
            if not any(cells):
                continue
            if not header:
                header = cells
            elif len(cells) != len(header):
                said = f"the row has {len(cells)} cells, the header {len(header)}"
                remedy = "put text that holds a comma in double quotes"
                problems.append(Problem(said, remedy, str(path), number))
            else:
                rows.append(Row(str(path), number, _cells(dict(zip(header, cells, strict=True)))))
    except csv.Error as error:
        problems.append(Problem(f"not CSV: {error}", "double a quote inside quotes", str(path), line))
    repeated = sorted({name for name in header if header.count(name) > 1})
    if repeated:
        said = f"columns that stand twice: {', '.join(repeated)}"
        problems.append(Problem(said, "rename or remove one", str(path), 1, field=repeated[0]))
    return Content(tuple(rows), problems=tuple(problems))


def _cells(cells: dict[str, str]) -> dict[str, object]:
    """Returns a row's values by key, the columns of tags gathered; an empty cell is as good as none."""
    filled = {name: cell for name, cell in cells.items() if cell}
    tags = {name.removeprefix(TAG): cell for name, cell in filled.items() if name.startswith(TAG)}
    values: dict[str, object] = {name: cell for name, cell in filled.items() if not name.startswith(TAG)}
    return values | ({"tags": tags} if tags else {})


def _yaml(path: Path) -> Content:
    """Returns the rows of a YAML file. All values are text, as in a CSV file: an id 7 is "7", a region no is "no"."""
    text = "".join(files.read_lines(path))
    try:
        loader = yaml.BaseLoader(text)
        node = loader.get_single_node()
        edits, categories, problems = _yaml_parts(path, node)
        rows = []
        for item in edits:
            line = item.start_mark.line + 1
            if not isinstance(item, yaml.MappingNode):
                said = f"an edit is {_short(loader.construct_object(item, deep=True))}"
                problems.append(Problem(said, "write its keys and values, as `id: ...`", str(path), line))
                continue
            problems += _repeated_keys(path, item)
            rows.append(Row(str(path), line, loader.construct_object(item, deep=True)))
        names = []
        for item in categories:
            if isinstance(item, yaml.ScalarNode):
                names.append(item.value)
            else:
                said = "a category is not a name"
                problems.append(Problem(said, "write categories: [name, ...]", str(path), item.start_mark.line + 1))
    except yaml.YAMLError as error:
        line = error.problem_mark.line + 1 if getattr(error, "problem_mark", None) else 1
        said = f"not YAML: {' '.join(str(getattr(error, 'problem', None) or error).split())}"
        remedy = "mend that line; text that begins with [ or holds a colon and a space wants quotes"
        return Content(problems=(Problem(said, remedy, str(path), line),))
    return Content(tuple(rows), tuple(names), tuple(problems))


def _yaml_parts(path: Path, node: yaml.Node | None) -> tuple[list[yaml.Node], list[yaml.Node], list[Problem]]:
    """Returns the nodes of edits, those of declared categories, and problems: of a list of edits, or of `edits:` and
    `categories:`."""
    parts: dict[str, list[yaml.Node]] = {"edits": [], "categories": []}
    if isinstance(node, yaml.SequenceNode):
        return node.value, [], []
    if not isinstance(node, yaml.MappingNode):
        return [], [], [Problem("holds no edits", "write a list of them under `edits:`", str(path))]
    problems = _repeated_keys(path, node)
    for key, value in node.value:
        line = key.start_mark.line + 1
        if key.value not in parts:
            said = f"unknown key {key.value!r}{did_you_mean(key.value, parts)}"
            problems.append(Problem(said, "the keys are edits and categories", str(path), line, field=str(key.value)))
        elif isinstance(value, yaml.SequenceNode):
            parts[key.value] = value.value
        else:
            said = f"{key.value} is no list"
            problems.append(Problem(said, "begin each item with a dash", str(path), line, field=key.value))
    return parts["edits"], parts["categories"], problems


def _repeated_keys(path: Path, node: yaml.MappingNode) -> list[Problem]:
    seen: set[str] = set()
    problems = []
    for key, _ in node.value:
        if str(key.value) in seen:
            said = f"the key {key.value!r} stands twice"
            problems.append(Problem(said, "remove one", str(path), key.start_mark.line + 1, field=str(key.value)))
        seen.add(str(key.value))
    return problems


def _short(value: object) -> str:
    return repr(value)[:60]


READERS = {".jsonl": _json_lines, ".yaml": _yaml, ".yml": _yaml, ".csv": _csv}
