"""Files are written whole or not at all, and the shipped data is found."""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import filelock

from riebench.core.errors import UserError
from riebench.core.json_text import json_text
from riebench.core.text import parse_json, read_lines, read_text


def data_folder() -> Path:
    """Returns the shipped `data/`: beside the code in a wheel, at the repository's root in a clone or an editable
    install. Raises `UserError` where it is not there."""
    here = Path(__file__).resolve().parents[1]
    for folder in (here / "_data", here.parent / "data"):
        if folder.is_dir():
            return folder
    raise UserError(f"riebench's data folder is missing from {here}", remedy="install riebench again")


BLOCK_BYTES = 2**20  # read at once for a digest
MARKER = ".riebench-run"  # stands in every run directory, and says that its files are the tool's own
#: How `replacing` names what it has not finished: after the file that it will be, with 8 characters of chance.
UNFINISHED = re.compile(r"\.(?P<name>.+)\.[a-z0-9_]{8}(?P<suffix>(\.\w+)?)")


def named_path(text: str | Path) -> Path:
    """Returns the path that a user named; `~` is the home. Raises `UserError` for an empty name, as of a variable that
    is not set, which would stand for the current directory, and for one that no file can have."""
    if not (isinstance(text, Path) or str(text).strip()):  # Path("") is "."
        raise UserError("an empty path names nothing", remedy="name a file or a folder; '.' is the current directory")
    if "\0" in str(text):
        raise UserError(f"no path can be {str(text)!r}", remedy="leave the zero byte out")
    try:
        return Path(text).expanduser()
    except RuntimeError as error:  # ~somebody, who is unknown here
        raise UserError(f"{text} begins at a home that is not known", remedy="write the whole path") from error


@contextmanager
def replacing(path: Path, *, sync: bool = True, make_folder: bool = True) -> Iterator[Path]:
    """Yields a temporary path beside `path`; what was written there is flushed and renamed to `path` on success.

    sync: flush it to the disk; without, it may be lost in a power failure, though not when the process dies.
    make_folder: make the folder where it is not there.
    Raises `UserError` when the folder cannot be written or the disk is full, and for a device; an older file stays as
    it was.
    """
    path = Path(path)
    temporary: Path | None = None
    try:
        if path.exists() and not path.is_file() and not path.is_dir():
            raise UserError(f"{path} is a device, not a file", remedy="name a file to be written")
        if make_folder:
            path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix)
        os.close(handle)
        temporary = Path(name)
        temporary.chmod(0o644)
        yield temporary
        if sync:
            with open(temporary, "rb") as written:
                os.fsync(written.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror or error}",
            remedy="choose a folder you may write to, on a disk with room",
        ) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def unfinished(path: Path) -> str:
    """Returns the name of the file of which this is the unfinished form, as `replacing` names it; "" where of none."""
    found = UNFINISHED.fullmatch(path.name) if path.is_file() and not path.is_symlink() else None
    return found["name"] if found and Path(found["name"]).suffix == found["suffix"] else ""


def file_sha256(path: Path, remedy: str = "check the path") -> str:
    """Returns the sha256 of a file's bytes, in hex. Raises `UserError` with the remedy where it cannot be read."""
    try:
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256", _bufsize=BLOCK_BYTES).hexdigest()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}", remedy=remedy) from error


def write_bytes(path: Path, data: bytes) -> None:
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    write_bytes(path, text.encode())


def write_json(path: Path, value: object, *, sort_keys: bool = True) -> None:
    """Writes a value as JSON, whole or not at all. sort_keys: where the order of keys says nothing."""
    write_text(path, json_text(value, indent=2, sort_keys=sort_keys) + "\n")


def read_json_lines(path: Path) -> Iterator[tuple[str, dict]]:
    """Yields (where it stands, object) of each line that is not blank. Raises `UserError` naming one that is none."""
    for number, line in enumerate(read_lines(path), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            item = parse_json(line)
        except ValueError as error:
            raise UserError(f"{where}: not JSON: {error}", remedy="one JSON object a line") from error
        if not isinstance(item, dict):
            raise UserError(f"{where}: not a JSON object", remedy="one JSON object a line")
        yield where, item


def lock_folder(folder: Path, name: str, busy: Callable[[], UserError]) -> filelock.BaseFileLock:
    """Returns the acquired lock of that name in a folder, which is made where it is not there.

    busy: what is raised where another process holds it. Raises `UserError` where the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(folder / name, timeout=0)
        lock.acquire()
    except filelock.Timeout as error:
        raise busy() from error
    except OSError as error:
        raise UserError(
            f"cannot write to {folder}: {error.strerror or error}", remedy="choose a folder you may write to"
        ) from error
    return lock


def read_json(path: Path, what: str) -> dict:
    """Returns the JSON object in a file. Raises `UserError` naming the file where it is missing or broken."""
    value = read_json_value(path, what)
    if not isinstance(value, dict):
        raise UserError(f"{what} {path} is not a JSON object", remedy="mend the file or remove it")
    return value


def read_json_value(path: Path, what: str, *, finite: bool = False, remedy: str = "mend the file or remove it") -> Any:
    """Returns the value in a JSON file. finite: as in `parse_json`. Raises `UserError` naming the file where it is
    missing or broken."""
    try:
        return parse_json(read_text(path), finite=finite)
    except UserError as error:
        raise UserError(f"{what} {error.message}", remedy=error.remedy) from error
    except ValueError as error:
        raise UserError(f"{what} {path} cannot be read: {error}", remedy=remedy) from error
