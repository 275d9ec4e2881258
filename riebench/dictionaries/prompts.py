"""Prompts to harvest with: captions of the embedded world, what the shipped edits show, a text file, a column of a
table, or a data set by name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path

import numpy as np

from riebench.core.errors import UserError, did_you_mean
from riebench.core.files import named_path, read_json_lines
from riebench.core.text import read_lines
from riebench.dictionaries.edit_prompts import edit_prompts

CAPTIONS, EDITS = "captions", "edits"
DATASETS = "datasets:"
#: LAION-COCO's captions, filtered, as the published SAEs' training data (24 million, column `caption`). The name is
#: taken from the published code; nothing of it was downloaded or tried in making riebench.
LAION_COCO = f"{DATASETS}guangyil/laion-coco-aesthetic:train"
DEFAULTS = {"tinyworld": CAPTIONS, "sdxl": LAION_COCO}
COLUMNS = ("prompt", "caption", "text")  # the first of these that there is, where no column is named


def read_prompts(
    source: str = "", *, column: str = "", count: int = 0, seed: int = 0, family: str = "tinyworld"
) -> list[str]:
    """Returns prompts in the order of their source, without surrounding space; blank ones are left out.

    source: `captions` (of random scenes of tinyworld, drawn from `seed`), `edits` (what the dev split of the shipped
    edits shows, `riebench.dictionaries.edit_prompts`, drawn from `seed`), a `.txt` file with a prompt a line, a
    `.jsonl` or `.parquet` file, or `datasets:NAME[:SPLIT]`, read as a stream, SPLIT being `train` where none is given;
    "" takes what suits the family of judges (`Backbone.judges`). column: of a table; "" takes the first of `COLUMNS`
    that it has. count: read so many; 0 reads all. Only these are kept in memory.

    Raises `UserError` for a source, a column or a value that cannot be read, and for fewer prompts than asked for.
    """
    source = source or DEFAULTS[family]
    if count < 0:
        raise UserError(f"{count} prompts cannot be read", remedy="give a number from 1 on, or 0 for all")
    if source == CAPTIONS:
        return _captions(count, seed)
    if source == EDITS:
        found = edit_prompts(count, seed)
    else:
        found = list(islice((text.strip() for text in _texts(source, column) if text.strip()), count or None))
    if len(found) < max(count, 1):
        raise UserError(f"{source} holds {len(found)} prompts", remedy=f"ask for fewer than {count or 1}, or add some")
    return found


def world_prompts(count: int, seed: int, split: str = "train") -> list[str]:
    """Returns captions of random tinyworld scenes of a split (`scenes.sample_attributes`)."""
    from riebench.tinyworld.captions import captions
    from riebench.tinyworld.scenes import sample_attributes

    return captions(sample_attributes(np.random.default_rng(seed), count, split))


def _captions(count: int, seed: int) -> list[str]:
    if not count:
        raise UserError("captions are made without end", remedy="say how many prompts are wanted")
    return world_prompts(count, seed)


def _texts(source: str, column: str) -> Iterator[str]:
    if source.startswith(DATASETS):
        return _of_data_set(source, column)
    path = named_path(source)
    readers = {".txt": _of_text, ".jsonl": _of_json_lines, ".parquet": _of_parquet}
    if path.suffix not in readers:
        raise UserError(
            f"prompts cannot be read from {source!r}{did_you_mean(source, (CAPTIONS, EDITS))}",
            remedy=f"give {CAPTIONS}, {EDITS}, {DATASETS}NAME, or a file that ends in {', '.join(readers)}",
        )
    if not path.is_file():
        raise UserError(f"{path} does not exist", remedy="check the path")
    return readers[path.suffix](path, column)


def _of_text(path: Path, column: str) -> Iterator[str]:
    if column:
        raise UserError(f"{path} has no columns", remedy="leave the column out")
    yield from read_lines(path)


def _of_json_lines(path: Path, column: str) -> Iterator[str]:
    for where, item in read_json_lines(path):
        yield _text_of(item, column, where)


def _of_parquet(path: Path, column: str) -> Iterator[str]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as table:
            name = _column(table.schema_arrow.names, column, str(path))
            for batch in table.iter_batches(columns=[name]):
                for row in batch.to_pylist():
                    yield _text_of(row, name, str(path))
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path} cannot be read: {error}", remedy="mend the file") from error


def _of_data_set(source: str, column: str) -> Iterator[str]:
    name, _, split = source.removeprefix(DATASETS).partition(":")
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise UserError(f"{source} needs the package datasets", remedy="pip install datasets") from error
    try:
        for row in load_dataset(name, split=split or "train", streaming=True):
            yield _text_of(row, column, source)
    except UserError:
        raise
    except Exception as error:  # of the network, the name, the split, or a file of the data set
        raise UserError(
            f"{source} cannot be read: {type(error).__name__}: {error}", remedy="check name, split and network"
        ) from error


def _text_of(row: Mapping[str, object], column: str, where: str) -> str:
    """Returns the text of a row, which is empty where it has none."""
    name = _column(list(row), column, where)
    value = row[name]
    if value is not None and not isinstance(value, str):
        raise UserError(f"{where}: {name} is {value!r}, not text", remedy="give a column of text")
    return value or ""


def _column(names: Sequence[str], column: str, where: str) -> str:
    wanted = (column,) if column else COLUMNS
    found = next((name for name in wanted if name in names), None)
    if found is None:
        near = did_you_mean(column, names) if column else ""
        raise UserError(
            f"{where} has no column {' or '.join(map(repr, wanted))}{near}", remedy=f"it has {', '.join(names)}"
        )
    return found
