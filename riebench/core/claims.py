"""Where the tool may write: folders that it made or that are empty, and files that are not there or its own.

A folder is the tool's where a marker stands in it, a file where it begins as the tool begins it. All else is somebody
else's, and is refused by name before anything is made.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from riebench.core.errors import UserError
from riebench.core.files import MARKER, named_path

#: What a folder is -> its marker. `MARKER` is that of a run directory.
MARKERS = {
    "run directory": MARKER,
    "site": ".riebench-site",
    "folder of tables": ".riebench-tables",
    "folder of dictionaries": ".riebench-dictionaries",
    "training of tinyworld": ".riebench-tinyworld",
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


def refuse_others(folder: Path, what: str, marker: str = "", own: Sequence[str] = ()) -> None:
    """Raises `UserError` for a folder that holds anything and no marker, and for what is no folder. own: names that
    the tool may have left there before the marker, which is that of `MARKERS` where none is named."""
    try:
        if is_file(folder / (marker or MARKERS[what])) or not os.path.lexists(folder):
            return
        foreign = sorted(set(os.listdir(folder)) - set(own))
    except OSError as error:
        raise _unwritable(folder, error) from error
    if foreign:
        shown = ", ".join(foreign[:3]) + (", ..." if len(foreign) > 3 else "")
        raise UserError(
            f"{folder.resolve()} is not empty and no {what}: it holds {shown}",
            remedy=f"give --out a new or empty folder, or a {what} that riebench made",
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
        above = next(parent for parent in path.absolute().parents if parent.exists())
        if not (above.is_dir() and os.access(above, os.W_OK)):
            raise UserError(f"cannot write {path}: {above} is no folder to write to", remedy="choose another folder")
    except OSError as error:
        raise _unwritable(path, error) from error
    return path


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
