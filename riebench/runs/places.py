"""Places of what a configuration names: a path in a YAML file is seen from that file, and absolute from then on."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from riebench.core.errors import UserError
from riebench.core.files import named_path
from riebench.edits.edit import Edit, load_edits, meant_edits, shipped_sets


def place(values: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Returns values of a run's fields, with what lies in folders as absolute paths, seen from `folder`: `edits` (a
    user's, `meant_edits`), `dictionaries`, and the `folder` of a backbone of one's own."""
    placed = fixed(values, folder)
    if values.get("edits"):
        placed["edits"] = meant_edits(values["edits"], folder)
    return placed


def fixed(values: Mapping[str, Any], folder: Path = Path()) -> dict[str, Any]:
    """Returns the same, but edits called as a shipped set are that set."""
    found = dict(values)
    if found.get("dictionaries"):
        found["dictionaries"] = _absolute(found["dictionaries"], folder)
    if found.get("edits") and found["edits"] not in shipped_sets():
        found["edits"] = _absolute(found["edits"], folder)
    backbone = found.get("backbone")
    if isinstance(backbone, Mapping) and isinstance(backbone.get("folder"), str) and backbone["folder"].strip():
        found["backbone"] = {**backbone, "folder": _absolute(backbone["folder"], folder)}
    return found


def edits_of_run(manifest: Mapping[str, Any], now: str | Path = "") -> list[Edit]:
    """Returns the edits of the set that a run's manifest names. now: where they are, if they were moved since. Raises
    `UserError` where they cannot be read."""
    try:
        return load_edits(now or manifest["config"]["edits"])
    except UserError as error:
        remedy = error.remedy if now else "restore them, or say with --edits where they are now"
        raise UserError(f"the edits of the run cannot be read: {error.message}", remedy=remedy) from error


def _absolute(path: str, folder: Path) -> str:
    return os.path.abspath(folder / named_path(path))
