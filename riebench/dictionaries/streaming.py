"""Training batches straight from generation: no disk, a shuffling buffer for each block."""

from __future__ import annotations

from collections.abc import Sequence
from math import gcd

import numpy as np
import torch
from torch import Tensor

from riebench.core.errors import UserError
from riebench.core.progress import Progress
from riebench.dictionaries.harvest import rows_per_prompt, stream
from riebench.generation.sampler import Sampler
from sae_models.buffer import ShufflingBuffer


class StreamedBatches:
    """Batches for training, straight from generation: no disk, a shuffling buffer for each block.

    An endless iterator over `[blocks, batch_size, C]` bfloat16, blocks in the model's order, of every block the same
    prompts, steps and positions. A batch depends on its step alone: in each epoch the prompts go through in windows
    that fill the buffers once, and the order of a window is drawn from the seed, the epoch and its number. So a
    training that resumes (`seek`) generates one window again, not all before it. What is held generates nothing: going
    back in a window, and another epoch where one window holds all prompts. Every row comes once an epoch, but those
    that do not fill its last batch.

    buffer_rows: room of a block's buffer, at most; as much of it is used as makes windows of whole prompts and whole
    batches. device: of the buffers, by default the sampler's. Raises `UserError` for settings that cannot be meant, for
    too small a buffer, and for prompts that do not fill one batch.
    """

    def __init__(
        self,
        sampler: Sampler,
        blocks: Sequence[str],
        prompts: Sequence[str],
        seed: int,
        batch_size: int,
        *,
        buffer_rows: int,
        branch: str = "both",
        site: str = "update",
        device: torch.device | None = None,
    ) -> None:
        self.sampler, self.blocks, self.prompts = sampler, sampler.backbone.family.in_order(blocks), prompts
        self.seed, self.batch_size, self.branch, self.site = seed, batch_size, branch, site
        if batch_size < 1 or not self.blocks:
            raise UserError("there are no batches to make", remedy="give at least one block, and batch_size from 1 on")
        each = rows_per_prompt(sampler, self.blocks[0], branch)
        unit = batch_size // gcd(batch_size, each)  # the fewest prompts that make whole batches
        self.window_prompts = buffer_rows // (unit * each) * unit
        if len(prompts) * each <= buffer_rows:
            self.window_prompts = len(prompts)
        if not self.window_prompts:
            raise UserError(
                f"a buffer of {buffer_rows} rows is too small for batches of {batch_size}, {each} rows a prompt",
                remedy=f"give it {unit * each} rows or a multiple, or change batch_size",
            )
        self.steps = len(prompts) * each // batch_size
        """Batches of an epoch."""
        if not self.steps:
            raise UserError(
                f"{len(prompts)} prompts give {len(prompts) * each} rows, and a batch takes {batch_size}",
                remedy="give more prompts, or lower batch_size",
            )
        self._buffers = {
            one.block: ShufflingBuffer(
                self.window_prompts * each, sampler.blocks.width(one), device=device or sampler.device
            )
            for one in sampler.blocks.sites(self.blocks, site)
        }
        self._window_steps = self.window_prompts * each // batch_size
        self._epoch, self._window, self._drawn = -1, -1, 0
        self.position = 0
        """The step of the batch that `next` gives."""

    @property
    def buffer_rows(self) -> int:
        """The rows in the buffer of a block."""
        return next(iter(self._buffers.values())).rows

    @property
    def bytes(self) -> int:
        """The memory of all buffers, in bytes."""
        return sum(buffer.bytes for buffer in self._buffers.values())

    def __iter__(self) -> StreamedBatches:
        return self

    def __next__(self) -> Tensor:
        batch = self._at(self.position)
        self.position += 1
        return batch

    def seek(self, step: int) -> None:
        """Makes the batch of a step, counted from 0, the next one."""
        if step < 0:
            raise UserError(f"there is no step {step}", remedy="give a whole number from 0 on")
        self.position = step

    def _at(self, step: int) -> Tensor:
        epoch, step = divmod(step, self.steps)
        window, index = divmod(step, self._window_steps)
        if window != self._window:
            self._fill(window)
        if (epoch, window) != (self._epoch, self._window):
            drawn_from = int(np.random.SeedSequence([self.seed, epoch, window]).generate_state(1)[0])
            for buffer in self._buffers.values():
                buffer.shuffle(drawn_from)
            self._epoch, self._window, self._drawn = epoch, window, 0
        elif index < self._drawn:
            self._drawn = 0
            for buffer in self._buffers.values():
                buffer.rewind()
        for buffer in self._buffers.values():
            buffer.draw((index - self._drawn) * self.batch_size)
        self._drawn = index + 1
        return torch.stack([buffer.draw(self.batch_size) for buffer in self._buffers.values()])

    def _fill(self, window: int) -> None:
        self._epoch, self._window = -1, -1  # until it is whole
        for buffer in self._buffers.values():
            buffer.clear()
        start = window * self.window_prompts
        stop = min(start + self.window_prompts, len(self.prompts))
        label = f"generating prompts {start + 1} to {stop} of {len(self.prompts)}"
        with Progress(label, total=stop - start, unit="prompt") as progress:
            done = 0
            span, of = {"start": start, "stop": stop}, {"branch": self.branch, "site": self.site}
            for chunk in stream(self.sampler, self.blocks, self.prompts, self.seed, **span, **of):
                for block, rows in chunk.items():
                    self._buffers[block].add(rows.values)
                done += len(chunk[self.blocks[0]]) // rows_per_prompt(self.sampler, self.blocks[0], self.branch)
                progress.update(done)
