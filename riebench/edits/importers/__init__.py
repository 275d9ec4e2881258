"""Importers make folders of edits of published lists of prompt pairs. Nothing is left out without being named."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

from riebench.core.claims import refuse_others
from riebench.core.errors import UserError, did_you_mean
from riebench.core.files import file_sha256, named_path
from riebench.edits.edit import categories_of, write_edits
from riebench.edits.files import error_of
from riebench.edits.importers.items import Imported
from riebench.edits.importers.pie_bench import import_pie_bench
from riebench.edits.importers.published import import_riebench
from riebench.edits.sets import write_set_file

#: Name -> importer (file, folder of the edits to be) -> what came of it.
IMPORTERS: dict[str, Callable[[Path, Path], Imported]] = {
    "riebench": lambda path, _: import_riebench(path),
    "pie-bench": lambda path, out: import_pie_bench(path, out / "masks"),
}


def import_edits(kind: str, path: Path, out: Path) -> Imported:
    """Writes a foreign list as a folder of edits, and returns what came of it.

    The folder has a JSON-lines file a category, `set.json`, and the masks.

    kind: one of `IMPORTERS`. Raises `UserError` for another, for a file that is no such list or of which no item can be
    taken, and where `out` holds something already.
    """
    if kind not in IMPORTERS:
        raise UserError(f"unknown list {kind!r}{did_you_mean(kind, IMPORTERS)}", remedy=f"use {', '.join(IMPORTERS)}")
    path, out = named_path(path), named_path(out)
    refuse_others(out, "new folder", marker="")
    imported = IMPORTERS[kind](path, out)
    if not imported.edits:
        raise error_of(path, imported.refused) if imported.refused else UserError(f"{path} holds no edit to take")
    for category in categories_of(imported.edits):
        of_category = [edit for edit in imported.edits if edit.category == category]
        write_edits(of_category, out / f"{category}.jsonl")
    source = f"{path.name}, sha256 {file_sha256(path)}"
    write_set_file(out, imported.edits, name=f"imported-{kind}", version="1", licence="not stated", source=source)
    return imported


def format_imported(imported: Imported) -> str:
    """Returns what came of a list, in lines: edits of each category, what was dropped, each refused item and why."""
    counts = Counter(edit.category for edit in imported.edits)
    lines = [f"{len(imported.edits)} edits taken"]
    lines += [f"  {category}: {counts[category]}" for category in categories_of(imported.edits)]
    lines += [f"{count} dropped: {reason}" for reason, count in imported.dropped.items()]
    lines += [f"{len(imported.refused)} refused", *(f"  {problem}" for problem in imported.refused)]
    return "\n".join(lines)
