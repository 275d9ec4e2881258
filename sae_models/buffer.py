"""Rows go into a shuffling buffer as they are made, and come out in a random order."""

from __future__ import annotations

import torch
from torch import Tensor


class ShufflingBuffer:
    """This holds up to `rows` rows of `width` numbers on a device; the order is drawn on the CPU, the same everywhere.

    What is drawn depends on the seed and on the calls alone. A draw takes from the rows that are held, each as likely
    as any other, and no row is drawn twice. An order costs one permutation of the rows held, at the first draw after
    an `add`. Raises `ValueError` for more rows than there is room for, more than are held, or of another width.
    """

    def __init__(
        self,
        rows: int,
        width: int,
        dtype: torch.dtype = torch.bfloat16,
        device: str | torch.device = "cpu",
        seed: int = 0,
    ) -> None:
        self._values_nd = torch.empty(rows, width, dtype=dtype, device=device)
        self._slots = torch.arange(rows)  # those that hold a row first, in the order drawn from the back
        self._generator = torch.Generator().manual_seed(seed)
        self.clear()

    def clear(self) -> None:
        """Forgets every row."""
        self._slots = torch.arange(self.rows)
        self._held = self._filled = 0
        self._ordered = False

    @property
    def rows(self) -> int:
        """The number of rows that there is room for."""
        return len(self._values_nd)

    @property
    def held(self) -> int:
        """The number of rows that can be drawn."""
        return self._held

    @property
    def bytes(self) -> int:
        """The memory that it keeps: the rows on their device, and 8 bytes a row on the CPU for the order. While an
        order is drawn, 16 more a row."""
        return self._values_nd.nbytes + self._slots.nbytes

    def add(self, values_nd: Tensor) -> None:
        """Takes in rows `[n, width]`."""
        if values_nd.shape[1:] != self._values_nd.shape[1:]:
            raise ValueError(f"rows {list(values_nd.shape)} for a buffer {list(self._values_nd.shape)}")
        if len(values_nd) > self.rows - self._held:
            raise ValueError(f"{len(values_nd)} rows for a buffer with room for {self.rows - self._held}")
        slots = self._slots[self._held : self._held + len(values_nd)]
        self._values_nd[slots.to(self._values_nd.device)] = values_nd.to(self._values_nd)
        self._held += len(values_nd)
        self._filled, self._ordered = self._held, False

    def draw(self, count: int) -> Tensor:
        """Returns rows `[count, width]`, a copy; they are no longer held."""
        if count > self._held:
            raise ValueError(f"{count} rows from a buffer that holds {self._held}")
        if not self._ordered:
            order = torch.randperm(self._held, generator=self._generator)
            self._slots[: self._held] = self._slots[: self._held][order]
            self._ordered = True
        drawn = self._slots[self._held - count : self._held]
        self._held -= count
        return self._values_nd[drawn.to(self._values_nd.device)]

    def rewind(self) -> None:
        """Takes back every draw since the last `add`: the same rows come again, in the same order."""
        self._held = self._filled

    def shuffle(self, seed: int) -> None:
        """Takes back every draw since the last `add`; the order of what is drawn next depends on the rows held and on
        the seed alone."""
        self.rewind()
        self._slots[: self._held] = self._slots[: self._held].sort().values
        self._generator.manual_seed(seed)
        self._ordered = False
