"""Rows in memory become training batches here."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from riebench.core.errors import UserError


class ShuffledBatches:
    """This iterates over batches of rows without end: each epoch goes through the rows in an order of its own, drawn
    from the seed."""

    def __init__(self, rows_nd: Tensor, batch_size: int, seed: int) -> None:
        self.rows_nd, self.batch_size, self.seed, self.step = rows_nd, batch_size, seed, 0
        self._order = lru_cache(maxsize=1)(self._order_of)

    def seek(self, step: int) -> None:
        """Goes to `step`, counted from 0, whose batch is the next."""
        self.step = step

    def __iter__(self) -> ShuffledBatches:
        return self

    def __next__(self) -> Tensor:
        epoch, batch = divmod(self.step, len(self.rows_nd) // self.batch_size)
        self.step += 1
        return self.rows_nd[self._order(epoch)[batch * self.batch_size : (batch + 1) * self.batch_size]]

    def _order_of(self, epoch: int) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed + epoch)
        return torch.randperm(len(self.rows_nd), generator=generator).to(self.rows_nd.device)


def shuffled_batches(rows_nd: Tensor, batch_size: int, *, seed: int = 0) -> ShuffledBatches:
    """Returns `batches` for `train`, of rows in memory.

    Rows that do not fill the last batch of an epoch are left out of it. Raises `UserError` with too few for one batch.
    """
    if len(rows_nd) < batch_size:
        raise UserError(f"{len(rows_nd)} rows do not fill a batch of {batch_size}", remedy="lower batch_size")
    return ShuffledBatches(rows_nd, batch_size, seed)
