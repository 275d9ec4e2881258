"""The run directory as a store of keyed results: pictures, and rows in parts that are never changed.

`docs/run-directory.md` says what lies where. Everything is written whole or not at all, pictures before the rows that
name them, so whatever ends a process, what is there can be trusted; and every picture is compared with its row's hash
when a directory is opened.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
from collections import deque
from collections.abc import Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote
from uuid import uuid4

import filelock
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
from PIL import Image

from riebench.errors import UserError
from riebench.files import replacing
from riebench.keys import file_sha256

KEY_COLUMNS = ("recipe", "code", "judges", "status", "image", "image_sha256")
PENDING = 4  # batches that may wait to be written
LONGEST_NAME = 80


@dataclass(frozen=True)
class Batch:
    """Results that are written together: the pictures first, then the rows as one part."""

    rows: list[dict]
    pictures: dict[str, np.ndarray]
    """Path relative to the run directory -> uint8 `[h, w, 3]` or `[h, w]`."""
    forwards: float = 0.0
    """U-Net forwards that it took to make them."""


class Store:
    """One run directory, open for writing by this process alone, as a context manager.

    Raises `UserError` where another process has it open, or it cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self.damage: list[str] = []
        """A sentence for everything that was found broken, and is forgotten."""
        self._rows: dict[str, dict] = {}
        self._hashes: dict[str, str] = {}
        self._next = 0
        self._pending: deque[Future] = deque()
        self._lock = filelock.FileLock(self.folder / ".lock", timeout=0)

    def __enter__(self) -> Store:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock.acquire()
        except filelock.Timeout as error:
            raise UserError(
                f"another riebench is writing to {self.folder}{_holder(self.folder)}",
                remedy="wait for it, or choose another --out",
            ) from error
        except OSError as error:
            raise UserError(
                f"cannot write to {self.folder}: {error.strerror or error}", remedy="choose a folder you may write to"
            ) from error
        try:
            (self.folder / ".lock.pid").write_text(str(os.getpid()))
            self._read()
        except BaseException:
            self._lock.release()
            raise
        self._writer, self._encoders = ThreadPoolExecutor(1), ThreadPoolExecutor(2)
        return self

    def __exit__(self, kind, *exc) -> None:
        try:
            self.flush()
        except UserError:
            if kind is None:
                raise
        finally:
            self._writer.shutdown()
            self._encoders.shutdown()
            self._lock.release()

    def row(self, recipe: str) -> dict | None:
        """The latest row of a recipe, or None where there is none."""
        return self._rows.get(recipe)

    def add(self, batch: Batch) -> None:
        """Takes a batch to be written behind the caller's back; waits where too many are. Raises the `UserError` that
        an earlier one has met."""
        while self._pending and (self._pending[0].done() or len(self._pending) >= PENDING):
            self._pending.popleft().result()
        self._pending.append(self._writer.submit(self._write, batch))

    def flush(self) -> None:
        """Waits until everything is on disk. Raises the `UserError` that a batch has met."""
        while self._pending:
            self._pending.popleft().result()

    def frame(self, recipes: Sequence[str]) -> pd.DataFrame:
        """The rows of the recipes, in their order. Raises `UserError` where some are not there."""
        self.flush()
        missing = sum(recipe not in self._rows for recipe in recipes)
        if missing:
            raise UserError(f"{missing} of {len(recipes)} results are not in {self.folder}", remedy="run it again")
        return pd.DataFrame([self._rows[recipe] for recipe in recipes])

    def adopt(self, folder: Path, recipes: Collection[str]) -> int:
        """Takes the rows of these recipes that this store lacks from another run directory, with their pictures; the
        other is only read. Returns how many. Raises `UserError` where it holds no results."""
        other = Store(folder)
        if not (other.folder / "parts").is_dir():
            raise UserError(f"{folder} holds no results", remedy="give the folder of a run")
        other._read(rename=False)
        self.damage += other.damage
        rows = [other._rows[recipe] for recipe in recipes if recipe in other._rows and recipe not in self._rows]
        names = {row["image"] for row in rows if row["image"]}
        # the pictures of the references lie beside those of the results, and are not named by any row
        beside = {path for name in names for path in (other.folder / name).parent.glob("*.png")}
        for path in beside:
            name = path.relative_to(other.folder).as_posix()
            if not (self.folder / name).exists():
                with replacing(self.folder / name, sync=False) as temporary:
                    shutil.copyfile(path, temporary)
        self._hashes |= {name: other._hashes[name] for name in names}
        if rows:
            self.add(Batch([dict(row) for row in rows], {}))
            self.flush()
        return len(rows)

    def _write(self, batch: Batch) -> None:
        self._check_folder()
        encoded = self._encoders.map(lambda item: self._write_picture(*item), batch.pictures.items())
        self._hashes |= dict(encoded)
        rows = [row | {"image_sha256": self._hash(row["image"])} for row in batch.rows]
        if rows:
            name = f"{self._next:09d}-{uuid4().hex[:8]}.parquet"
            with replacing(self.folder / "parts" / name) as temporary:
                pd.DataFrame(rows).to_parquet(temporary, index=False)
            self._next += 1
        self._rows |= {row["recipe"]: row for row in rows}

    def _write_picture(self, name: str, array: np.ndarray) -> tuple[str, str]:
        """(name, sha256). Not flushed to the disk: after a power failure the hash tells, and it is made again."""
        png = io.BytesIO()
        Image.fromarray(array).save(png, "png", compress_level=1)
        with replacing(self.folder / name, sync=False) as temporary:
            temporary.write_bytes(png.getvalue())
        return name, hashlib.sha256(png.getvalue()).hexdigest()

    def _hash(self, name: str) -> str:
        if name and name not in self._hashes:
            self._hashes[name] = file_sha256(self.folder / name)
        return self._hashes[name] if name else ""

    def _check_folder(self) -> None:
        """A folder that was removed under a run is not made anew, with half of the results."""
        if not (self.folder / ".lock").exists():
            raise UserError(f"the run directory {self.folder} has vanished", remedy="run the same command again")

    def _read(self, *, rename: bool = True) -> None:
        paths = sorted((self.folder / "parts").glob("*.parquet"))
        self._next = int(paths[-1].name.partition("-")[0]) + 1 if paths else 0
        with ThreadPoolExecutor() as pool:
            for path, rows in zip(paths, pool.map(_read_part, paths), strict=True):
                if isinstance(rows, str):
                    self.damage.append(f"{path} cannot be read ({rows}): its results are made again")
                    if rename:
                        path.rename(path.with_name(f"{path.name}.damaged"))
                else:
                    self._rows |= {row["recipe"]: row for row in rows}
            named = dict.fromkeys(row["image"] for row in self._rows.values() if row["image"])
            self._hashes = dict(zip(named, pool.map(self._hash_there, named), strict=True))
        for row in list(self._rows.values()):
            found = self._hashes.get(row["image"], "")
            if found != row["image_sha256"]:
                if row["image"] in named:
                    del named[row["image"]]
                    what = "is not what was written there" if found else "is missing"
                    self.damage.append(f"{self.folder / row['image']} {what}: it is made again")
                del self._rows[row["recipe"]]

    def _hash_there(self, name: str) -> str:
        try:
            return file_sha256(self.folder / name)
        except OSError:
            return ""


def _read_part(path: Path) -> list[dict] | str:
    """The rows of a part, or why they cannot be read."""
    try:
        frame = pq.read_table(path, use_threads=False).to_pandas()
    except (OSError, ValueError) as error:  # pyarrow's own errors are of these
        return str(error).splitlines()[0]
    missing = [column for column in KEY_COLUMNS if column not in frame.columns]
    return f"no column {missing[0]}" if missing else frame.to_dict("records")


def _holder(folder: Path) -> str:
    try:
        return f" (process {int((folder / '.lock.pid').read_text())})"
    except (OSError, ValueError):
        return ""


def read_picture(path: Path) -> np.ndarray:
    """uint8 `[h, w, 3]` or `[h, w]`. Raises `UserError` naming a file that is missing or broken."""
    try:
        with Image.open(path) as picture:
            return np.asarray(picture)
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f"{path} is not a picture: {error}", remedy="remove it and run the same command") from error


def picture_path(edit: str, seed: int, name: str, key: str) -> str:
    """Where a picture lies, relative to the run directory, whatever characters the edit's id has."""
    return f"images/{_component(edit)}/{seed}/{_component(name)}-{key[:12]}.png"


def _component(text: str) -> str:
    """A text as the name of a file that every file system takes, never longer than `LONGEST_NAME`."""
    quoted = quote(text, safe="@+,=").replace(".", "%2E" if text.strip(".") == "" else ".")
    if len(quoted) <= LONGEST_NAME:
        return quoted
    return f"{quoted[: LONGEST_NAME - 13]}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
