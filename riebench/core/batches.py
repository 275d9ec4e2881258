"""Batches of one fixed size, so that a row's arithmetic does not depend on how many rows there are."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch

from riebench.core.errors import UserError
from riebench.core.memory import is_out_of_memory

T = TypeVar("T")
R = TypeVar("R")


def fixed_batches(rows: Sequence[T], size: int) -> Iterator[tuple[list[T], int]]:
    """Yields (batch of `size` rows, how many of them count); a last, shorter batch is filled up with its last row."""
    for start in range(0, len(rows), size):
        batch = list(rows[start : start + size])
        yield batch + [batch[-1]] * (size - len(batch)), len(batch)


def halving(work: Callable[[int], R], size: int, what: str) -> tuple[R, int]:
    """Returns (`work(size)`, size), with half the size for as long as memory runs out; says each halving on stderr.

    Raises `UserError` where not even one row fits.
    """
    while True:
        try:
            return work(size), size
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            if size == 1:
                said = " ".join(str(error).split()).partition(". ")[0]
                raise UserError(
                    f"{what}: not even one row fits into memory{f' ({said})' if said else ''}",
                    remedy="free some memory, or use a smaller batch size or model",
                ) from error
        size //= 2
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        print(f"riebench: {what}: out of memory, going on with batches of {size}", file=sys.stderr, flush=True)
