"""What SAEs are trained on: updates as they are generated, or out of an activation store. The last prompts are kept
back, to evaluate on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from riebench.backbones.table import Backbone
from riebench.core.errors import UserError
from riebench.dictionaries.harvest import made_by, rows_per_prompt, stream
from riebench.dictionaries.streaming import StreamedBatches
from riebench.generation.sampler import Sampler, load_sampler
from sae_models.activation_store import ActivationStore, StoreBatches

HELD_BACK_SHARE, MOST_HELD_BACK = 16, 1024  # one in so many prompts is kept back, and no more than so many
BUFFER_ROWS = 2**19  # of a block: 1.3 GB of SDXL's


class TrainingData(Protocol):
    """Rows of several blocks of one backbone."""

    backbone: str
    site: str
    """Kind of the sites that the rows are of."""
    blocks: tuple[str, ...]
    widths: dict[str, int]
    """Block -> C."""
    device: torch.device
    """Where the batches are."""

    def rows(self) -> int:
        """Returns how many rows a block is trained on, each epoch."""
        ...

    def made_by(self) -> dict[str, Any]:
        """Returns all that decides the rows, as JSON has it."""
        ...

    def batches(self, blocks: Sequence[str], batch_size: int) -> StreamedBatches | StackedBatches:
        """Returns endless batches `[blocks, batch_size, C]`. Raises `UserError` where they cannot be made."""
        ...

    def elsewhere(self) -> Callable[[torch.device], TrainingData]:
        """Returns what makes the same data in another process, from scratch, on a device; it can be pickled."""
        ...

    def held_back(self, blocks: Sequence[str]) -> Iterator[dict[str, Tensor]]:
        """Yields block -> `[n, C]`, part by part, of the prompts that are not trained on."""
        ...


class Generated:
    """Makes rows anew, each prompt i from noise of its own, `seed + i`; nothing is written.

    buffer_rows: room of a block's shuffling buffer; 2 C + 8 bytes a row. Raises `UserError` for too few prompts.
    """

    def __init__(
        self,
        sampler: Sampler,
        blocks: Sequence[str],
        prompts: Sequence[str],
        seed: int,
        *,
        branch: str = "both",
        site: str = "update",
        buffer_rows: int = BUFFER_ROWS,
    ) -> None:
        self.sampler, self.prompts, self.seed = sampler, prompts, seed
        self.branch, self.site, self.buffer_rows = branch, site, buffer_rows
        self.backbone, self.device = sampler.backbone.name, sampler.device
        self.blocks = sampler.backbone.family.in_order(blocks)
        self.widths = {one.block: sampler.blocks.width(one) for one in sampler.blocks.sites(self.blocks, site)}
        _refuse_unlike({block: rows_per_prompt(sampler, block, branch) for block in self.blocks}, self.widths)
        self._trained_on = len(prompts) - _held_back(len(prompts))

    def rows(self) -> int:
        """Returns the rows of a block of all prompts that are trained on."""
        return self._trained_on * rows_per_prompt(self.sampler, self.blocks[0], self.branch)

    def made_by(self) -> dict[str, Any]:
        """Returns what decides the rows and their order: `harvest.made_by` and the room of the buffer."""
        found = made_by(self.sampler, self.blocks, self.prompts, self.seed, self.branch, self.site)
        del found["grids"]  # which follow from the rest, and would tell the blocks that are trained together
        return found | {"buffer_rows": self.buffer_rows}

    def batches(self, blocks: Sequence[str], batch_size: int) -> StreamedBatches:
        """Returns batches as they are generated. Raises `UserError` as `StreamedBatches` does."""
        prompts = self.prompts[: self._trained_on]
        how = {"buffer_rows": self.buffer_rows, "branch": self.branch, "site": self.site}
        return StreamedBatches(self.sampler, blocks, prompts, self.seed, batch_size, **how)

    def elsewhere(self) -> Callable[[torch.device], Generated]:
        """Returns what loads the backbone on a device, in the same precision, and makes the same rows there."""
        loaded = self.sampler.backbone, self.sampler.batch_size, self.sampler.denoiser.dtype
        how = {"buffer_rows": self.buffer_rows, "branch": self.branch, "site": self.site}
        return partial(_generated_on, *loaded, (self.blocks, self.prompts, self.seed), how)

    def held_back(self, blocks: Sequence[str]) -> Iterator[dict[str, Tensor]]:
        """Yields block -> `[n, C]`, a batch of the sampler at a time, of the prompts that are kept back."""
        of = {"start": self._trained_on, "branch": self.branch, "site": self.site}
        for chunk in stream(self.sampler, blocks, self.prompts, self.seed, **of):
            yield {block: rows.values for block, rows in chunk.items()}


class Stored:
    """Reads rows out of a store that `riebench harvest` wrote. Raises `UserError` for a store that is not complete, for
    too few prompts, and for a block that it has not.

    seed: of the order in which rows are read.
    """

    def __init__(
        self,
        store: ActivationStore,
        blocks: Sequence[str] = (),
        *,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        if not store.complete:
            raise UserError(
                f"{store.folder} has {store.shards} of {store.origin.shards} shards",
                remedy="let riebench harvest finish it",
            )
        for block in blocks:
            store.expect(block=block)
        self.store, self.seed, self.device = store, seed, torch.device(device)
        self.backbone, self.blocks = store.backbone, tuple(blocks) or store.blocks
        self.site = store.origin.made_by.get("site", "update")
        self.widths = {block: store.origin.widths[block] for block in self.blocks}
        _refuse_unlike({block: store.rows[block] for block in self.blocks}, self.widths)
        self._prompts = store.origin.made_by["prompts"]
        self._held_back = _held_back(self._prompts)

    def rows(self) -> int:
        """Returns the rows of a block of all prompts that are trained on."""
        rows = self.store.rows[self.blocks[0]]
        return rows // self._prompts * (self._prompts - self._held_back)

    def made_by(self) -> dict[str, Any]:
        """Returns what decides the rows and their order: the store's sha256 and the seed."""
        return {"store_sha256": self.store.sha256, "seed": self.seed}

    def batches(self, blocks: Sequence[str], batch_size: int) -> StackedBatches:
        """Returns batches out of the store. Raises `UserError` where the rows do not fill one."""
        if self.rows() < batch_size:
            raise UserError(
                f"{self.store.folder} has {self.rows()} rows to train on, and a batch takes {batch_size}",
                remedy="harvest more prompts, or lower the batch size",
            )
        return _stacked(self.store, blocks, batch_size, self.seed, self.rows(), self.device)

    def elsewhere(self) -> Callable[[torch.device], Stored]:
        """Returns what opens the store in another process, and gives its rows on a device."""
        return partial(_stored_on, self.store.folder.absolute(), self.blocks, self.seed)

    def held_back(self, blocks: Sequence[str]) -> Iterator[dict[str, Tensor]]:
        """Yields block -> `[n, C]`, part by part, of the prompts that are kept back."""
        parts = [self.store.values_from(block, self.rows()) for block in blocks]
        for values in zip(*parts, strict=True):
            yield {block: value.to(self.device) for block, value in zip(blocks, values, strict=True)}


class StackedBatches:
    """Batches `[blocks, n, C]` of several blocks, in step with one another."""

    def __init__(self, batches: Sequence[StoreBatches]) -> None:
        self._batches = batches

    def __iter__(self) -> StackedBatches:
        return self

    def __next__(self) -> Tensor:
        return torch.stack([next(batches) for batches in self._batches])

    @property
    def bytes(self) -> int:
        """The memory that they take at most, in bytes."""
        return sum(batches.bytes for batches in self._batches)

    def seek(self, step: int) -> None:
        """Makes the batch of a step, counted from 0, the next one."""
        for batches in self._batches:
            batches.seek(step)


def _generated_on(
    backbone: Backbone, batch_size: int, dtype: torch.dtype, rows: tuple, how: dict[str, Any], device: torch.device
) -> Generated:
    return Generated(load_sampler(backbone, device, batch_size, dtype), *rows, **how)


def _stored_on(folder: Path, blocks: Sequence[str], seed: int, device: torch.device) -> Stored:
    return Stored(ActivationStore.open(folder), blocks, seed=seed, device=device)


def _stacked(
    store: ActivationStore, blocks: Sequence[str], batch_size: int, seed: int, rows: int, device: torch.device
) -> StackedBatches:
    return StackedBatches([store.batches(block, batch_size, seed=seed, rows=rows, device=device) for block in blocks])


def _held_back(prompts: int) -> int:
    """Returns how many of so many prompts are kept back. Raises `UserError` where that is none."""
    if prompts < HELD_BACK_SHARE:
        raise UserError(f"{prompts} prompts are too few", remedy=f"use at least {HELD_BACK_SHARE}")
    return min(prompts // HELD_BACK_SHARE, MOST_HELD_BACK)


def _refuse_unlike(rows: Mapping[str, int], widths: Mapping[str, int]) -> None:
    """Raises `UserError` where blocks differ in their rows or widths, and so cannot share batches."""
    if len(set(rows.values())) > 1 or len(set(widths.values())) > 1:
        told = ", ".join(f"{block} {rows[block]} x {widths[block]}" for block in rows)
        raise UserError(f"blocks differ in rows x width: {told}", remedy="train those that are alike by themselves")
