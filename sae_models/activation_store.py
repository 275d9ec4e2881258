"""An activation store is a folder of immutable shards of bfloat16 rows; `docs/activation-store.md` specifies it.

A row is a vector of one block with four columns: the prompt it belongs to, the step, the position in the block's grid
and the branch of guidance.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from riebench.core.claims import refuse_others
from riebench.core.errors import UserError, did_you_mean
from riebench.core.files import (
    file_sha256,
    lock_folder,
    named_path,
    read_json,
    replacing,
    unfinished,
    write_json,
)
from sae_models.tensors import dtype_name

FORMAT, VERSION = "riebench activation store", 1
STORE_FILE, LOCK = "store.json", ".lock"
SHARD_NAME = r"shard-\d{6,}\.safetensors"
DTYPE = torch.bfloat16
COLUMNS = {"prompt": torch.int64, "step": torch.int16, "position": torch.int32, "branch": torch.int8}
BRANCHES = ("cond", "uncond")  # what 0 and 1 in the column `branch` mean
CHUNK_ROWS = 1_024  # that are read together
WINDOW_ROWS = 131_072  # that are shuffled together
READ_BYTES = 2**20
AGAIN = "remove that file and harvest again with the same command: it is made anew, and nothing else"


@dataclass(frozen=True)
class Rows:
    """These are rows of one block. Raises `ValueError` for tensors of a wrong shape or type."""

    values: Tensor
    """`[n, C]`, bfloat16."""
    prompt: Tensor
    """`[n]`, int64: index in the list of prompts."""
    step: Tensor
    """`[n]`, int16: denoising step, from 0."""
    position: Tensor
    """`[n]`, int32: cell of the block's grid, row by row."""
    branch: Tensor
    """`[n]`, int8: index in `BRANCHES`."""

    def __post_init__(self) -> None:
        if self.values.ndim != 2 or self.values.dtype != DTYPE:
            raise ValueError(f"values are {self.values.dtype} {list(self.values.shape)}")
        for name, dtype in COLUMNS.items():
            column = getattr(self, name)
            if column.shape != (len(self.values),) or column.dtype != dtype:
                raise ValueError(f"{name} is {column.dtype} {list(column.shape)} beside {len(self.values)} rows")

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, part: slice) -> Rows:
        return Rows(*(getattr(self, item.name)[part] for item in fields(self)))

    @property
    def width(self) -> int:
        """C: the number of values in a row."""
        return self.values.shape[1]

    @staticmethod
    def empty(count: int, width: int) -> Rows:
        """Returns room for `count` rows of `width` numbers, on the CPU."""
        columns = {name: torch.empty(count, dtype=dtype) for name, dtype in COLUMNS.items()}
        return Rows(torch.empty(count, width, dtype=DTYPE), **columns)

    def put(self, start: int, part: Rows) -> None:
        """Copies a part, from any device, to the rows from `start` on."""
        for item in fields(self):
            getattr(self, item.name)[start : start + len(part)] = getattr(part, item.name)

    def refuse_not_finite(self, block: str) -> None:
        """Raises `UserError` naming prompt and step of the first row that holds NaN or infinity."""
        if torch.isfinite(self.values.sum(dtype=torch.float32)):  # a sum keeps NaN and infinity, and is quick
            return
        bad = ~torch.isfinite(self.values).all(dim=1)
        if bad.any():
            row = int(bad.nonzero()[0])
            raise UserError(
                f"{block}: the row of prompt {self.prompt[row]}, step {self.step[row]}, position {self.position[row]} "
                "holds NaN or infinite values",
                remedy="half precision overflows where bfloat16 and float32 do not: choose another dtype",
            )


@dataclass(frozen=True)
class Origin:
    """This says what a store is of; a harvest goes on only in a store of the same."""

    backbone: str
    widths: Mapping[str, int]
    """Block -> numbers a row."""
    shards: int
    """Of a complete store."""
    made_by: Mapping[str, Any] = field(default_factory=dict)
    """What else decides the rows, as JSON has it: weights, prompts, seed, steps."""


@dataclass(frozen=True)
class ShardFile:
    """This is what `store.json` says of a shard of one block."""

    rows: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Encoded:
    """This is a shard of one block as it is written."""

    data: bytes
    """The bytes of its file."""
    file: ShardFile


def encode(rows: Rows) -> Encoded:
    """Returns the file of a shard: the same bytes for the same rows, on any machine."""
    tensors = {item.name: getattr(rows, item.name).cpu().contiguous() for item in fields(rows)}
    data = safetensors.torch.save(tensors, metadata={"format": "pt"})
    return Encoded(data, ShardFile(len(rows), len(data), hashlib.sha256(data).hexdigest()))


def shard_path(folder: Path, block: str, number: int) -> Path:
    """Returns where a shard of a block lies."""
    return Path(folder) / block / f"shard-{number:06d}.safetensors"


def refuse_other_store(folder: Path) -> None:
    """Raises `UserError` for a folder that holds anything and no store, and for a file of a store's name that is
    none."""
    refuse_others(folder, "store", STORE_FILE, own=(LOCK,))
    if (folder / STORE_FILE).exists():
        _read_store(folder / STORE_FILE)


class StoreWriter:
    """Writes a store, or goes on with one of the same origin; one process at a time. Use as a context manager.

    Entering raises `UserError` where another process writes, the folder cannot be written, or it holds another store.
    Leaving waits for the shard that is being written, and raises what `write` raises for it, unless another error is on
    its way.
    """

    def __init__(self, folder: Path, origin: Origin) -> None:
        self.folder, self.origin = named_path(folder), origin
        self._shards: list[dict[str, ShardFile]] = []
        self._ahead: dict[int, dict[str, ShardFile]] = {}  # written, with one before them missing
        self._writing: Future[None] | None = None

    def __enter__(self) -> StoreWriter:
        refuse_other_store(self.folder)
        self._lock = lock_folder(
            self.folder,
            LOCK,
            lambda: UserError(f"another process is writing to {self.folder}", remedy="wait for it"),
        )
        try:
            self._shards = self._open()
        except BaseException:
            self._lock.release()
            raise
        self._thread = ThreadPoolExecutor(1, "riebench-store")
        return self

    def __exit__(self, kind: type[BaseException] | None, *_error: object) -> None:
        try:
            self._thread.shutdown()
            if kind is None:
                self._wait()
        finally:
            self._lock.release()

    @property
    def missing(self) -> list[int]:
        """The numbers of the shards that are not there whole, ascending. Sizes are compared, not hashes."""
        there = {number for number, shard in enumerate(self._shards) if not any(_damage(self.folder, number, shard))}
        return [number for number in range(self.origin.shards) if number not in there]

    def write(self, number: int, rows: Mapping[str, Rows]) -> None:
        """Writes one shard of every block, then the store's file that names them. Memory: one block's shard twice.

        Raises `UserError` for rows that are not finite, `ValueError` for other blocks or another width.
        """
        if {block: part.width for block, part in rows.items()} != dict(self.origin.widths):
            raise ValueError(f"rows of {list(rows)} for a store of {dict(self.origin.widths)}")
        for block, part in rows.items():
            part.refuse_not_finite(block)
        self.write_encoded(number, ((block, encode(part)) for block, part in rows.items()))

    def write_encoded(self, number: int, shard: Iterable[tuple[str, Encoded]]) -> None:
        """Writes the files of one shard as they come, block by block, then the store's file that names them; where an
        earlier shard is missing yet, they are named when that is there."""
        written = {}
        for block, encoded in shard:
            with replacing(shard_path(self.folder, block, number)) as temporary:
                temporary.write_bytes(encoded.data)
            written[block] = encoded.file
        if set(written) != set(self.origin.widths):
            raise ValueError(f"a shard of {list(written)} for a store of {dict(self.origin.widths)}")
        if number < len(self._shards):
            self._shards[number] = written
        else:
            self._ahead[number] = written
        while len(self._shards) in self._ahead:
            self._shards.append(self._ahead.pop(len(self._shards)))
        self._write_store()

    def write_behind(self, number: int, rows: Mapping[str, Rows]) -> None:
        """Writes as `write` does, in a thread, while the caller makes the next shard; the rows are not to be changed
        afterwards. Waits for the shard before, so at most one is held, and raises what `write` raised for it."""
        self._wait()
        self._writing = self._thread.submit(self.write, number, rows)

    def _wait(self) -> None:
        writing, self._writing = self._writing, None
        if writing:
            writing.result()

    def _open(self) -> list[dict[str, ShardFile]]:
        path = self.folder / STORE_FILE
        if not path.exists():
            self._shards = []
            self._write_store()
            return self._shards
        for place, name in ((".", re.escape(STORE_FILE)), *((block, SHARD_NAME) for block in self.origin.widths)):
            for leftover in (self.folder / place).glob(".*"):  # of a process that was killed while writing
                if re.fullmatch(name, unfinished(leftover)):
                    leftover.unlink(missing_ok=True)
        found, shards = _read_store(path)
        there, wanted = _described(found), _described(self.origin)
        differing = [name for name in wanted | there if there.get(name) != wanted.get(name)]
        if differing:
            raise UserError(
                f"{self.folder} is a store with "
                + ", ".join(f"{name} {there.get(name)!r}, not {wanted.get(name)!r}" for name in differing),
                remedy="harvest with the same settings, or into another folder",
            )
        return shards

    def _write_store(self) -> None:
        description = {
            "format": FORMAT,
            "version": VERSION,
            "dtype": dtype_name(DTYPE),
            "columns": {name: dtype_name(dtype) for name, dtype in COLUMNS.items()},
            "branches": list(BRANCHES),
            **asdict(self.origin),
            "written": [{block: asdict(file) for block, file in shard.items()} for shard in self._shards],
        }
        write_json(self.folder / STORE_FILE, description)


class ActivationStore:
    """This reads a store, complete or not, and never changes it."""

    def __init__(self, folder: Path, origin: Origin, shards: list[dict[str, ShardFile]]) -> None:
        self.folder, self.origin, self._shards = folder, origin, shards
        self._verified: set[tuple[str, int]] = set()

    @classmethod
    def open(cls, folder: Path) -> ActivationStore:
        """Opens the store in a folder. Raises `UserError` for a folder that is no store, for another version, and for
        shards that are missing or of another size than they were written with."""
        folder = Path(folder)
        origin, shards = _read_store(folder / STORE_FILE)
        damage = [text for number, shard in enumerate(shards) for text in _damage(folder, number, shard)]
        if damage:
            raise UserError("; ".join(damage), remedy="harvest again with the same command: only these are made anew")
        return cls(folder, origin, shards)

    @property
    def backbone(self) -> str:
        """The name of the model whose updates these are."""
        return self.origin.backbone

    @property
    def blocks(self) -> tuple[str, ...]:
        """The short names of the blocks."""
        return tuple(self.origin.widths)

    @property
    def shards(self) -> int:
        """How many shards are there."""
        return len(self._shards)

    @property
    def complete(self) -> bool:
        """Whether every shard is there."""
        return self.shards == self.origin.shards

    @property
    def rows(self) -> dict[str, int]:
        """How many rows are there, by block."""
        return {block: sum(shard[block].rows for shard in self._shards) for block in self.blocks}

    @property
    def sha256(self) -> str:
        """The digest of what `store.json` says of all shards: equal for stores of the same rows."""
        text = "".join(shard[block].sha256 for shard in self._shards for block in self.blocks)
        return hashlib.sha256(text.encode()).hexdigest()

    def expect(self, *, backbone: str | None = None, block: str | None = None, width: int | None = None) -> None:
        """Raises `UserError` where the store is of another backbone, lacks the block, or has rows of another width."""
        if backbone is not None and backbone != self.backbone:
            raise UserError(
                f"{self.folder} is a store of {self.backbone}, not of {backbone}", remedy="take a store of that model"
            )
        if block is not None and block not in self.blocks:
            raise UserError(
                f"{self.folder} has no block {block!r}{did_you_mean(block, self.blocks)}",
                remedy=f"it holds {', '.join(self.blocks)}",
            )
        for name in (block,) if block is not None else self.blocks:
            if width is not None and self.origin.widths[name] != width:
                raise UserError(
                    f"{self.folder}: rows of {name} have {self.origin.widths[name]} numbers, not {width}",
                    remedy="take a dictionary of that width",
                )

    def read(self, block: str, shard: int) -> Rows:
        """Returns a shard as a whole, on the CPU; its hash is compared when it is first read."""
        self.expect(block=block)
        with self._opened(block, shard) as file:
            return Rows(**{name: file.get_tensor(name) for name in ("values", *COLUMNS)})

    def batches(
        self,
        block: str,
        batch_size: int,
        *,
        seed: int = 0,
        rows: int | None = None,
        window_rows: int = WINDOW_ROWS,
        chunk_rows: int = CHUNK_ROWS,
        device: str | torch.device = "cpu",
    ) -> StoreBatches:
        """Returns rows of a block in a shuffled order, as `sae_models.trainer.train` takes them. rows: the first so
        many alone; None: all."""
        return StoreBatches(self, block, batch_size, seed, rows, window_rows, chunk_rows, device)

    def values_from(self, block: str, row: int, chunk_rows: int = CHUNK_ROWS) -> Iterator[Tensor]:
        """Yields values `[n, C]` of a block from a row on, in their order."""
        first = 0
        for shard, files in enumerate(self._shards):
            for start in range(max(0, row - first), files[block].rows, chunk_rows):
                yield self.read_values(block, shard, start, min(start + chunk_rows, files[block].rows))
            first += files[block].rows

    def read_values(self, block: str, shard: int, start: int, stop: int) -> Tensor:
        """Returns values `[stop - start, C]` of a shard."""
        with self._opened(block, shard) as file:
            return file.get_slice("values")[start:stop]

    def _opened(self, block: str, shard: int) -> safe_open:
        self._verify(block, shard)
        path = shard_path(self.folder, block, shard)
        try:
            file = safe_open(path, framework="pt")
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path} is not a whole safetensors file ({error})", remedy=AGAIN) from error
        rows = self._shards[shard][block].rows
        wanted = {"values": (rows, self.origin.widths[block]), **dict.fromkeys(COLUMNS, (rows,))}
        if shapes != wanted:
            raise UserError(f"{path} holds {shapes}, not {wanted}", remedy=AGAIN)
        return file

    def _verify(self, block: str, shard: int) -> None:
        """Raises `UserError` where a file's hash differs; a file is read for that once."""
        if (block, shard) in self._verified:
            return
        path = shard_path(self.folder, block, shard)
        if file_sha256(path, remedy=AGAIN) != self._shards[shard][block].sha256:
            raise UserError(f"{path} is not as it was written: its sha256 differs", remedy=AGAIN)
        self._verified.add((block, shard))


class StoreBatches:
    """This iterates without end over batches `[batch_size, C]` bfloat16 of a block: batch s is rows s * batch_size on
    of all epochs' orders laid end to end, so every row comes once an epoch. The order of an epoch: chunks of
    neighbouring rows, from all shards, in a random order; then the rows of each window of chunks in a random order.

    It has a position; a batch depends on its step alone. Raises `UserError` for settings that
    cannot be meant, a store without rows, and shards that are not as they were written.
    """

    def __init__(
        self,
        store: ActivationStore,
        block: str,
        batch_size: int,
        seed: int,
        rows: int | None,
        window_rows: int,
        chunk_rows: int,
        device: str | torch.device,
    ) -> None:
        store.expect(block=block)
        for name, value in (("batch_size", batch_size), ("window_rows", window_rows), ("chunk_rows", chunk_rows)):
            if value < 1:
                raise UserError(f"{name} is {value}", remedy="give a whole number of at least 1")
        self.store, self.block, self.batch_size, self.seed = store, block, batch_size, seed
        self.rows = store.rows[block] if rows is None else min(rows, store.rows[block])
        if not self.rows:
            raise UserError(f"{store.folder} holds no rows to read", remedy="harvest into it first")
        self._chunks, left = [], self.rows
        for shard, files in enumerate(store._shards):
            stop = min(files[block].rows, left)
            self._chunks += [(shard, start, min(start + chunk_rows, stop)) for start in range(0, stop, chunk_rows)]
            left -= stop
        self._settings = {"rows": self.rows, "window_rows": window_rows, "chunk_rows": chunk_rows}
        self._window_chunks = max(1, window_rows // chunk_rows)
        most = min(self._window_chunks * chunk_rows, self.rows)
        self._values_nd = torch.empty(most, store.origin.widths[block], dtype=DTYPE, device=device)
        self._extra_rows = chunk_rows + 2 * batch_size
        self._epoch = self._window = -1
        self.position = 0
        """The step of the batch that `next` gives."""

    @property
    def bytes(self) -> int:
        """The memory that it takes at most: a window with its order, a chunk, a batch and its parts, the list of
        chunks."""
        values = (len(self._values_nd) + self._extra_rows) * self._values_nd.shape[1] * DTYPE.itemsize
        return values + 8 * len(self._values_nd) + 256 * len(self._chunks)

    def __iter__(self) -> Iterator[Tensor]:
        return self

    def __next__(self) -> Tensor:
        batch = self._at(self.position)
        self.position += 1
        return batch

    def _at(self, step: int) -> Tensor:
        parts: list[Tensor] = []
        first, last = step * self.batch_size, (step + 1) * self.batch_size
        while first < last:
            epoch, row = divmod(first, self.rows)
            start, stop = self._load(epoch, row)
            taken = min(last - first, stop - row)
            parts.append(self._values_nd[row - start : row - start + taken].clone())
            first += taken
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def seek(self, step: int) -> None:
        """Goes to a step, counted from 0, whose batch is the next."""
        if step < 0:
            raise UserError(f"there is no step {step}", remedy="give a whole number from 0 on")
        self.position = step

    def state(self) -> dict[str, Any]:
        """Returns the position, and all that the order depends on, as JSON has it."""
        of = {"store": self.store.sha256, "block": self.block, "batch_size": self.batch_size, "seed": self.seed}
        return {"position": self.position, **of, **self._settings}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes on from `state()`. Raises `UserError` where that is of another store or other settings."""
        differing = [name for name, value in self.state().items() if name != "position" and state.get(name) != value]
        if differing:
            raise UserError(
                f"the position is of batches with another {', '.join(differing)}",
                remedy="read the same store with the same settings",
            )
        self.seek(state["position"])

    def _load(self, epoch: int, row: int) -> tuple[int, int]:
        """Loads the window that holds a row of an epoch, and returns its first row and the row behind its last."""
        if epoch != self._epoch:
            self._epoch, self._window = epoch, -1
            self._order = np.random.default_rng([self.seed, epoch]).permutation(len(self._chunks))
            sizes = np.array([self._chunks[i][2] - self._chunks[i][1] for i in self._order])
            self._ends: np.ndarray = np.append(0, sizes.cumsum())[:: self._window_chunks]
            if self._ends[-1] != self.rows:
                self._ends = np.append(self._ends, self.rows)
        window = int(np.searchsorted(self._ends, row, side="right")) - 1
        start, stop = int(self._ends[window]), int(self._ends[window + 1])
        if window != self._window:
            self._window = -1  # until it is whole
            places = torch.from_numpy(np.random.default_rng([self.seed, epoch, window]).permutation(stop - start))
            done = 0
            for i in self._order[window * self._window_chunks : (window + 1) * self._window_chunks]:
                values = self.store.read_values(self.block, *self._chunks[i]).to(self._values_nd.device)
                self._values_nd[places[done : done + len(values)].to(values.device)] = values
                done += len(values)
            self._window = window
        return start, stop


def _damage(folder: Path, number: int, shard: Mapping[str, ShardFile]) -> Iterator[str]:
    """Yields a sentence for each file of a shard that is missing or of another size than it was written with."""
    for block, file in shard.items():
        path = shard_path(folder, block, number)
        try:
            size = path.stat().st_size
        except OSError as error:
            yield f"{path} cannot be read: {error.strerror or error}"
            continue
        if size != file.bytes:
            yield f"{path} has {size} bytes, and was written with {file.bytes}"


def _read_store(path: Path) -> tuple[Origin, list[dict[str, ShardFile]]]:
    found = read_json(path, "activation store")
    if found.get("format") != FORMAT:
        raise UserError(f"{path} is not of an activation store", remedy="give the folder of a harvest")
    if found.get("version") != VERSION:
        raise UserError(
            f"{path} is of version {found.get('version')!r}, and this riebench reads version {VERSION}",
            remedy="harvest again, or use the riebench that wrote it",
        )
    try:
        origin = Origin(**{item.name: found[item.name] for item in fields(Origin)})
        shards = [{block: ShardFile(**shard[block]) for block in origin.widths} for shard in found["written"]]
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} lacks something or holds too much: {error}", remedy="harvest again") from error
    return origin, shards


def _described(origin: Origin) -> dict[str, Any]:
    """Returns what has to be equal for a harvest to go on, by name."""
    own = {"backbone": origin.backbone, "blocks": dict(origin.widths), "shards": origin.shards}
    return own | dict(origin.made_by)
