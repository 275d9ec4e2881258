"""The run directory as a store: results by their keys, with their pictures, written whole and checked when read."""

from __future__ import annotations

import hashlib
import io
import os
import re
import shutil
import socket
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from filelock import BaseFileLock
from PIL import Image

from riebench.analysis.run import MANIFEST, REPORT, SCORES, SUMMARY
from riebench.core import files
from riebench.core.claims import claim_folder
from riebench.core.errors import UserError
from riebench.core.keys import digest

#: What every row has; `image_sha256` is of the picture's file, "" where there is none. The other columns are free.
KEY_COLUMNS = ("recipe", "code", "scoring", "status", "image", "image_sha256")
PARTS, IMAGES, LOCK, WRITER = "parts", "images", ".lock", ".writer"
#: What the tool writes at the top of a run directory, beside its two sub-folders.
TOP_FILES = (MANIFEST, SCORES, SUMMARY, REPORT, "scoring.parquet", WRITER)
PART_NAME = re.compile(r"\d{9}-[0-9a-f]{8}\.parquet")
PICTURE_NAME = re.compile(r".+-[0-9a-f]{12}\.png")
PENDING = 4  # batches that wait to be written
THREADS = 4  # that encode and check pictures
COMPRESS_LEVEL = 1  # of PNG: a third of the time of level 6 at 512 px, for a sixth more bytes
LONGEST_NAME = 80


@dataclass(frozen=True)
class Batch:
    """Holds what is written together: pictures first, then the rows, so a row never names a picture that is not there.

    Raises `ValueError` for a row that lacks one of `KEY_COLUMNS`, or a picture that is not uint8 of those shapes.
    """

    rows: list[dict]
    """Plain values by column. `image` is the path of the row's picture, in this batch or written before, or "";
    `image_sha256` is filled in."""
    pictures: dict[str, np.ndarray]
    """Path relative to the run directory -> uint8 `[h, w, 3]` or `[h, w]`."""
    forwards: float = 0.0
    """Forwards of the denoiser that it took to make them."""

    def __post_init__(self) -> None:
        for row in self.rows:
            missing = [name for name in KEY_COLUMNS[:-1] if name not in row]
            if missing:
                raise ValueError(f"a row lacks {', '.join(missing)}")
        for name, picture in self.pictures.items():
            if picture.dtype != np.uint8 or picture.ndim not in (2, 3) or picture.shape[2:] not in ((), (3,)):
                raise ValueError(f"picture {name} is {picture.dtype} {list(picture.shape)}")


class Store:
    """Holds a run directory open, for one process at a time; it is a context manager.

    `parts/` holds the rows in files that are never changed, one a batch, whose names count up and end in the beginning
    of their sha256; a later row replaces an earlier one of the same recipe. What is found broken on entering is named
    in `damage`, one sentence each, and its rows count as not there. Entering raises `UserError` where the folder is
    neither empty nor a run directory, where another process has it open, and where it cannot be written; leaving waits
    until everything is on disk, and raises what went wrong unless another error is on its way.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = files.named_path(folder)
        self.damage: list[str] = []
        self._rows: dict[str, dict] = {}
        self._hashes: dict[str, str] = {}  # picture -> sha256, of those written or found whole
        self._pending: deque[Future] = deque()
        self._failure: Exception | None = None

    def __enter__(self) -> Store:
        self._lock = _acquire(self.folder)
        try:
            self._lock_identity = _identity(self.folder / LOCK)
            self._open()
        except BaseException:
            self._lock.release()
            raise
        self._writer = ThreadPoolExecutor(1, "riebench-writer")
        self._encoders = ThreadPoolExecutor(THREADS, "riebench-pictures")
        return self

    def __exit__(self, kind, error, trace) -> None:
        try:
            self._writer.shutdown()
            self._encoders.shutdown()
        finally:
            self._lock.release()
        if error is None and self._failure is not None:
            raise self._failure

    def row(self, recipe: str) -> dict | None:
        """Returns the row of a recipe as plain values; None where there is none, or it is not on disk yet."""
        found = self._rows.get(recipe)
        return None if found is None else dict(found)

    def add(self, batch: Batch) -> None:
        """Hands a batch to the writer and returns; waits only while `PENDING` others have not been written.

        A picture that is there already is replaced. Raises `UserError` when an earlier batch could not be written;
        from then on nothing more is.
        """
        self._settle(PENDING - 1)
        self._pending.append(self._writer.submit(self._write, batch))

    def flush(self) -> None:
        """Waits until everything is on disk. Raises `UserError` where that failed."""
        self._settle(0)

    def frame(self, recipes: Sequence[str]) -> pd.DataFrame:
        """Returns the rows of those recipes in that order. Raises `UserError` where some are missing."""
        self.flush()
        self.check_there()
        missing = sum(recipe not in self._rows for recipe in recipes)
        if missing:
            raise UserError(
                f"{missing} of {len(recipes)} results are not in {self.folder}", remedy="run the same command again"
            )
        return pd.DataFrame([self._rows[recipe] for recipe in recipes])

    def adopt(self, folder: Path, wanted: Mapping[str, str]) -> int:
        """Takes over from another run directory what this one lacks; returns how many rows.

        wanted: recipe -> code; a row of another code gives way to one of that code. Their pictures come along, as hard
        links where the file system can. The other folder is only read; what is broken there is named in `damage`, and
        a row whose picture differs from the one here under the same name stays where it is. Raises `UserError` where
        there is no such folder, or no results in it.
        """
        self.flush()
        folder = Path(folder)
        if not _part_paths(folder):
            reason = "holds no results" if folder.is_dir() else "does not exist"
            raise UserError(f"the run directory {folder} {reason}", remedy="give the folder of a run")
        there, broken = _read_parts(folder)
        lacking = {
            recipe: there[recipe]
            for recipe, code in wanted.items()
            if recipe in there
            and (recipe not in self._rows or self._rows[recipe]["code"] != code == there[recipe]["code"])
        }
        found, hashes, lost = _check_pictures(folder, lacking)
        self.damage += [*broken.values(), *lost]
        rows = [row for row in found.values() if _agrees(row, self._hashes)]
        for image in {row["image"] for row in rows if row["image"]} - self._hashes.keys():
            self._put(image, lambda path, source=folder / image: _link_or_copy(source, path), sync=False)
            self._hashes[image] = hashes[image]
        self._write_rows(rows)
        return len(rows)

    def _open(self) -> None:
        for path in _leftovers(self.folder):
            path.unlink(missing_ok=True)
        rows, broken = _read_parts(self.folder)
        for path in broken:
            path.rename(path.with_name(f"{path.name}.damaged"))
        self._rows, self._hashes, lost = _check_pictures(self.folder, rows)
        self.damage += [*broken.values(), *lost]
        numbers = [int(name[:9]) for name in _names(self.folder / PARTS) if re.match(r"\d{9}-", name)]
        self._number = max(numbers, default=0)

    def _settle(self, leave: int) -> None:
        """Waits until at most so many batches are pending. Raises what went wrong in any."""
        while len(self._pending) > leave:
            self._pending[0].exception()  # waits
            self._pending.popleft()
        if self._failure is not None:
            raise self._failure

    def _write(self, batch: Batch) -> None:
        """Writes a batch in the writer's thread, whose errors are kept for the main one."""
        if self._failure is not None:
            return
        try:
            hashes = self._encoders.map(self._write_picture, batch.pictures.items())
            self._hashes |= dict(zip(batch.pictures, hashes, strict=True))
            self._write_rows(batch.rows)
        except Exception as error:
            self._failure = error

    def _write_picture(self, item: tuple[str, np.ndarray]) -> str:
        """Writes a picture; returns the sha256 of its file."""
        name, picture = item
        encoded = io.BytesIO()
        Image.fromarray(picture).save(encoded, "PNG", compress_level=COMPRESS_LEVEL)
        data = encoded.getvalue()
        self._put(name, lambda path: path.write_bytes(data), sync=False)
        return hashlib.sha256(data).hexdigest()

    def _write_rows(self, rows: Sequence[dict]) -> None:
        """Writes rows, whose pictures are on disk, as one new part."""
        if not rows:
            return
        hashed = [{**row, "image_sha256": self._hash_of(row["image"])} for row in rows]
        columns = dict.fromkeys(column for row in hashed for column in row)
        plain = [{column: _plain(row.get(column)) for column in columns} for row in hashed]
        encoded = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(plain), encoded)
        data = encoded.getvalue()
        self._number += 1
        name = f"{PARTS}/{self._number:09d}-{hashlib.sha256(data).hexdigest()[:8]}.parquet"
        self._put(name, lambda path: path.write_bytes(data), sync=True)
        self._rows |= {row["recipe"]: row for row in plain}

    def _hash_of(self, image: str) -> str:
        """Returns the sha256 of a row's picture, "" for none. Raises `UserError` where it is not there."""
        if image and image not in self._hashes:
            found = _sha256(self.folder / image)
            if not found:
                raise UserError(f"picture {self.folder / image} is not there", remedy="run the same command again")
            self._hashes[image] = found
        return self._hashes[image] if image else ""

    def _put(self, name: str, write: Callable[[Path], None], *, sync: bool) -> None:
        """Writes a file of the run directory. Raises `UserError` where that fails, or the directory has vanished."""
        try:
            self.check_there()
            for room in [*Path(name).parents][-2::-1]:  # from the run directory on, which itself is not made anew
                (self.folder / room).mkdir(exist_ok=True)
            with files.replacing(self.folder / name, sync=sync, make_folder=False) as temporary:
                write(temporary)
        except (FileNotFoundError, UserError):
            self.check_there()  # the better message
            raise

    def check_there(self) -> None:
        """Raises `UserError` where the run directory has vanished."""
        # without this, a folder that was removed or renamed would be made anew, with half of a run
        if _identity(self.folder / LOCK) != self._lock_identity:
            raise UserError(
                f"the run directory {self.folder} has vanished: it was removed or renamed",
                remedy="run the same command again",
            )


def picture_path(edit_id: str, seed: int, name: str, key: str) -> str:
    """Returns `images/<edit>/<seed>/<name>-<12 digits of the key>.png`, safe on every file system whatever the names
    are."""
    return f"{IMAGES}/{_file_name(edit_id)}/{seed}/{_file_name(name)}-{key[:12]}.png"


def _leftovers(folder: Path) -> Iterator[Path]:
    """Yields what a process that was killed had not finished writing: the tool's own names, at their own places."""
    for path in folder.glob(".*"):
        if files.unfinished(path) in TOP_FILES:
            yield path
    for path in (folder / PARTS).glob(".*"):
        if PART_NAME.fullmatch(files.unfinished(path)):
            yield path
    for path in (folder / IMAGES).glob("*/*/.*"):
        if PICTURE_NAME.fullmatch(files.unfinished(path)):
            yield path


def _acquire(folder: Path) -> BaseFileLock:
    """Returns the lock of a run directory, which is made where it is not there."""
    claim_folder(folder)
    lock = files.lock_folder(
        folder,
        LOCK,
        lambda: UserError(
            f"another riebench{_holder(folder)} is writing to {folder}", remedy="wait for it, or choose another --out"
        ),
    )
    try:
        files.write_text(folder / WRITER, f"process {os.getpid()} on {socket.gethostname()}")
    except BaseException:
        lock.release()
        raise
    return lock


def _holder(folder: Path) -> str:
    """Returns who holds the lock: not in the lock's own file, which some versions of filelock empty."""
    try:
        return f" ({(folder / WRITER).read_text()})"
    except OSError:
        return ""


def _identity(path: Path) -> tuple[int, int] | None:
    """Returns what tells a file from another that took its place; None where there is none."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_dev, stat.st_ino


def _names(folder: Path) -> list[str]:
    """Returns the names in a folder, sorted, but hidden ones; none where there is no folder."""
    try:
        return sorted(name for name in os.listdir(folder) if not name.startswith("."))
    except (FileNotFoundError, NotADirectoryError):
        return []


def _part_paths(folder: Path) -> list[Path]:
    return [folder / PARTS / name for name in _names(folder / PARTS) if PART_NAME.fullmatch(name)]


def _read_parts(folder: Path) -> tuple[dict[str, dict], dict[Path, str]]:
    """Returns (recipe -> its last row, broken part -> a sentence about it)."""
    paths = _part_paths(folder)
    rows, broken = {}, {}
    with ThreadPoolExecutor(THREADS) as pool:
        for path, part in zip(paths, pool.map(_read_part, paths), strict=True):
            if isinstance(part, str):
                broken[path] = f"{path} {part}: its results are made again"
            else:
                rows |= {row["recipe"]: row for row in part.to_pylist()}
    return rows, broken


def _read_part(path: Path) -> pa.Table | str:
    """Returns the rows of a part, or what is wrong with it."""
    try:
        data = path.read_bytes()
        if path.stem.partition("-")[2] != hashlib.sha256(data).hexdigest()[:8]:
            return "is not as it was written"
        part = pq.ParquetFile(pa.BufferReader(data)).read(use_threads=False)
    except (OSError, pa.ArrowException) as error:
        return f"cannot be read ({str(error).splitlines()[0]})"
    missing = [name for name in KEY_COLUMNS if name not in part.column_names]
    return f"lacks the columns {', '.join(missing)}" if missing else part


def _check_pictures(folder: Path, rows: dict[str, dict]) -> tuple[dict[str, dict], dict[str, str], list[str]]:
    """Returns (rows without those whose picture is missing or changed, picture -> sha256 of the others' files, a
    sentence for each picture that is not as a row says)."""
    images = list(dict.fromkeys(row["image"] for row in rows.values() if row["image"]))
    with ThreadPoolExecutor(THREADS) as pool:
        hashes = dict(zip(images, pool.map(lambda image: _sha256(folder / image), images), strict=True))
    whole = {recipe: row for recipe, row in rows.items() if not row["image"] or _agrees(row, hashes)}
    lost: defaultdict[str, int] = defaultdict(int)
    for recipe, row in rows.items():
        lost[row["image"]] += recipe not in whole
    sentences = [
        f"{folder / image} {'has changed' if hashes[image] else 'is missing'}: it is made again, with {count} results"
        for image, count in lost.items()
        if count
    ]
    return whole, {row["image"]: row["image_sha256"] for row in whole.values() if row["image"]}, sentences


def _agrees(row: dict, hashes: dict[str, str]) -> bool:
    """Returns whether a row's picture is the known one of that name, or none of that name is known."""
    return hashes.get(row["image"], row["image_sha256"]) == row["image_sha256"]


def _sha256(path: Path) -> str:
    """Returns the sha256 of a file in hex; empty where it cannot be read."""
    try:
        return files.file_sha256(path)
    except UserError:
        return ""


def _link_or_copy(source: Path, path: Path) -> None:
    path.unlink()
    try:
        os.link(source.resolve(), path)
    except OSError:  # another disk, or a file system without links
        shutil.copyfile(source, path)


def _plain(value: object) -> object:
    return value.item() if isinstance(value, np.generic) else value


def _file_name(text: str) -> str:
    """Returns text as a part of a path: percent-quoted, cut where it is long, with no dot at either end."""
    quoted = quote(text, safe="@+.,=_-")
    if len(quoted) > LONGEST_NAME:
        quoted = f"{quoted[:LONGEST_NAME]}-{digest(text)[:12]}"
    return re.sub(r"^\.|\.$", "%2E", quoted)
