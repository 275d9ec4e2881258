"""An edit set is a folder of edits with a `set.json`, which says of them what is not in them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from riebench.core import files
from riebench.core.errors import UserError
from riebench.edits.edit import SPLITS, Edit, path_of, read_edits, set_sha256

SET_FILE = "set.json"
#: The keys of a set.json; `checked` says by which rules `riebench validate` looks at it: "any set" or "riebench".
SET_KEYS = ("name", "version", "licence", "source", "checked", "sha256")


def describe_set(name: str | Path, edits: Sequence[Edit] | None = None) -> dict:
    """Returns what a result says of its edits: {name, version, licence, sha256, count, splits: {split: count}}.

    name: of a shipped set, or a path. edits: those that lie there, where they have been read. Without a `set.json` the
    version and the licence are "", and the name is the path's. Raises `UserError` for edits that cannot be read, and
    where they are not those that `set.json` names.
    """
    path = path_of(name)
    edits = read_edits(path) if edits is None else edits
    said = read_set_file(path)
    found = set_sha256(edits)
    if said and said["sha256"] != found:
        raise UserError(
            f"the edits at {path} are not those of version {said['version']} of {said['name']!r}",
            remedy=f'restore them, or write "sha256": "{found}" and another version into its {SET_FILE}',
        )
    counts = {split: sum(edit.tags.get("split") == split for edit in edits) for split in SPLITS}
    return {
        "name": said.get("name", path.stem),
        "version": said.get("version", ""),
        "licence": said.get("licence", ""),
        "sha256": found,
        "count": len(edits),
        "splits": {split: count for split, count in counts.items() if count},
    }


def read_set_file(path: Path) -> dict[str, str]:
    """Returns the `set.json` of a folder; {} where there is none. Raises `UserError` where it has not its keys, all of
    text."""
    file = Path(path) / SET_FILE
    if not file.is_file():
        return {}
    said = files.read_json(file, "the edit set's")
    if sorted(said) != sorted(SET_KEYS) or not all(isinstance(value, str) for value in said.values()):
        raise UserError(f"{file} has not the keys of a set", remedy=f"give it {', '.join(SET_KEYS)}, each a text")
    return said


def write_set_file(
    folder: Path, edits: Sequence[Edit], *, name: str, version: str, licence: str, source: str, checked: str = "any set"
) -> None:
    """Writes the `set.json` of a folder that holds these edits."""
    values = (name, version, licence, source, checked, set_sha256(edits))
    files.write_json(Path(folder) / SET_FILE, dict(zip(SET_KEYS, values, strict=True)))
