"""Where the tool may write: folders that it made or that are empty, and files that are not there or its own.

A folder is the tool's where a marker stands in it, a file where it begins as the tool begins it. All else is somebody
else's, and is refused by name before anything is made.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from riebench.core.errors import UserError
from riebench.core.files import MARKER, named_path

#: What a folder is -> its marker. `MARKER` is that of a run directory.
MARKERS = {
    "run directory": MARKER,
    "site": ".riebench-site",
    "folder of tables": ".riebench-tables",
    "folder of dictionaries": ".riebench-dictionaries",
    "folder of text indices": ".riebench-text-index",
    "training of tinyworld": ".riebench-tinyworld",
    "edit set of tinyworld": ".riebench-tinyworld-edits",
}
_TEXT = "A {what} of riebench, which writes and deletes in it.\n"


def is_claimed(folder: Path, what: str = "run directory") -> bool:
    """Returns whether the tool made this folder, as one out of `MARKERS`."""
    return is_file(Path(folder) / MARKERS[what])


def claim_folder(folder: str | Path, what: str = "run directory") -> Path:
    """Makes a folder the tool's, as one out of `MARKERS`, and returns it. Raises `UserError` as `refuse_others` does,
    and where it cannot be written."""
    folder = named_path(folder)
    refuse_others(folder, what)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not is_claimed(folder, what):
            (folder / MARKERS[what]).write_text(_TEXT.format(what=what))
    except OSError as error:
        raise _unwritable(folder, error) from error
    return folder


def refuse_others(folder: Path, what: str, marker: str | None = None, own: Sequence[str] = ()) -> None:
    """Raises `UserError` for a folder that holds anything and no marker, for what is no folder, and where none can be
    made. marker: by default that of `MARKERS`; "" where an empty folder alone will do. own: names that the tool may
    have left there before the marker."""
    marker = MARKERS[what] if marker is None else marker
    try:
        if marker and is_file(folder / marker):
            return
        if not os.path.lexists(folder):
            _refuse_no_place(folder)
            return
        foreign = sorted(set(os.listdir(folder)) - set(own))
    except OSError as error:
        raise _unwritable(folder, error) from error
    if foreign:
        shown = ", ".join(foreign[:3]) + (", ..." if len(foreign) > 3 else "")
        raise UserError(
            f"{folder.resolve()} is not empty and no {what}: it holds {shown}",
            remedy="give --out a new or empty folder" + (f", or a {what} that riebench made" if marker else ""),
        )


def claim_file(path: str | Path, is_own: Callable[[Path], bool]) -> Path:
    """Returns the path of a file that is to be written. Raises `UserError` where something is there that is not the
    tool's, and where no file can be made there.

    is_own: whether a file that is there is one that the tool made.
    """
    path = named_path(path)
    try:
        if path.is_dir():
            raise UserError(f"{path} is a folder", remedy="name a file in it")
        if os.path.lexists(path) and not (path.is_file() and is_own(path)):
            raise UserError(
                f"{path} is there already, and riebench did not make it", remedy="give another name, or remove it first"
            )
        _refuse_no_place(path)
    except OSError as error:
        raise _unwritable(path, error) from error
    return path


def _refuse_no_place(path: Path) -> None:
    """Raises `OSError` where nothing can be made at a path: the nearest folder that is there is tried."""
    with suppress(FileNotFoundError):
        path.lstat()
    above = next(parent for parent in path.absolute().parents if os.path.lexists(parent))
    with tempfile.TemporaryFile(dir=above):
        pass


def begins(text: str) -> Callable[[Path], bool]:
    """Returns a function for `claim_file`: whether a file begins with the text, as the tool's tables do."""
    start = text.encode()

    def is_own(path: Path) -> bool:
        with path.open("rb") as file:
            return file.read(len(start)) == start

    return is_own


def is_file(path: Path) -> bool:
    """Returns whether there is such a file; a path that no file can have, as one that is too long, has none."""
    try:
        return path.is_file()
    except OSError:
        return False


def _unwritable(path: Path, error: OSError) -> UserError:
    return UserError(f"cannot write to {path}: {error.strerror or error}", remedy="choose a folder you may write to")
