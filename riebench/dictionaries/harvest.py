"""Harvesting: updates of several blocks from one generation pass, straight into training or into an activation store.

Prompt number i (from 0, in the list as a whole) is generated from noise of its own, drawn from `seed + i`. Batches are
padded to one size, in the text encoders too, so a row's bits do not depend on its company: what is harvested from the
middle on is what a harvest from the beginning has there. The denoiser stops behind the last block that is wanted at the
last step, and the VAE is never run. Rows are converted from what the denoiser computes in to bfloat16.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from queue import SimpleQueue

import torch
from torch import Tensor

from riebench.backbones.family import Site
from riebench.backbones.loading import weights_sha256
from riebench.core.batches import fixed_batches, halving
from riebench.core.errors import UserError
from riebench.core.json_text import json_text
from riebench.core.progress import Progress
from riebench.core.threads import machine_cores, threads, usable_cores
from riebench.generation.lens import Lens
from riebench.generation.sampler import Sampler
from sae_models.activation_store import BRANCHES, COLUMNS, DTYPE, ActivationStore, Origin, Rows, StoreWriter
from sae_models.tensors import dtype_name

SHARD_BYTES = 2**27  # of a block's shard, about: 128 MiB
MOST_SAMPLERS = 4  # more would wait for the interpreter's lock

#: Block -> its rows: by prompt, then branch, then step, then position.
Chunk = Mapping[str, Rows]


def stream(
    sampler: Sampler,
    blocks: Sequence[str],
    prompts: Sequence[str],
    seed: int,
    *,
    start: int = 0,
    stop: int | None = None,
    branch: str = "both",
    site: str = "update",
) -> Iterator[Chunk]:
    """Yields rows of prompts `start` to `stop`, a batch of the sampler at a time; values on its device, columns on the
    CPU.

    site: "update" or "stream", what is read of a block. branch: of guidance, "cond", "uncond" or "both"; without
    guidance there is only "cond". Where memory runs out the sampler's batch size is halved, for good; then a harvest
    equals another up to rounding. Raises `UserError` for an unknown block, for branches that the backbone has not, and
    naming prompt and step for rows that are not finite.
    """
    codes = _branches(sampler, branch)
    sites = sampler.blocks.sites(sampler.backbone.family.in_order(blocks), site)
    stop = len(prompts) if stop is None else stop
    done = start
    while done < stop:

        def work(size: int, done: int = done) -> Chunk:
            return _chunk(sampler, sites, prompts, range(done, min(done + size, stop)), seed, codes, size)

        what = f"harvesting from {sampler.backbone.name}"
        chunk, sampler.batch_size = halving(work, sampler.batch_size, what)
        for block, rows in chunk.items():
            rows.refuse_not_finite(block)
        yield chunk
        done += sampler.batch_size


def rows_per_prompt(sampler: Sampler, block: str, branch: str = "both") -> int:
    """Returns the rows that a prompt gives at a block: branches * steps * cells."""
    height, width = sampler.grids([block])[block]
    return len(_branches(sampler, branch)) * sampler.backbone.steps * height * width


def harvest_to_store(
    sampler: Sampler,
    blocks: Sequence[str],
    prompts: Sequence[str],
    seed: int,
    folder: Path,
    *,
    branch: str = "both",
    site: str = "update",
    shard_bytes: int = SHARD_BYTES,
) -> ActivationStore:
    """Harvests into a store, and returns it complete. Goes on where a killed harvest of the same settings stopped, and
    makes again what is missing or truncated.

    A shard is written in a thread of its own while the next one is made. On a CPU as many samplers make batches as
    there are free cores for, up to `MOST_SAMPLERS`; the threads of each depend on the machine alone, so what is made
    does not depend on how many there are.

    shard_bytes: of the values of one block's shard, about; a shard holds whole prompts. Memory: two shards of every
    block, one that is filled and one that is written, a block's shard once more, and a batch more than there are
    samplers. Raises `UserError` as `stream` and `StoreWriter` do, for a shard that cannot be written when the next is
    full at the latest; what was written stays, and what was handed to be written before another error or Ctrl-C is
    written.
    """
    harvest = plan_harvest(sampler, blocks, prompts, seed, branch, site, shard_bytes)
    each = harvest.shard_prompts
    with StoreWriter(folder, harvest.origin) as writer:
        missing = writer.missing
        with (
            harvest.progress(missing) as progress,
            _samplers(sampler, -(-sum(map(harvest.count, missing)) // sampler.batch_size)) as samplers,
        ):
            for _, group in groupby(enumerate(missing), lambda item: item[1] - item[0]):  # neighbouring shards
                numbers = [number for _, number in group]
                span = harvest.span(numbers[0]).start, harvest.span(numbers[-1]).stop
                with closing(_shared(samplers, harvest.blocks, prompts, seed, span, branch, site)) as chunks:
                    for number, shard in zip(numbers, _cut(chunks, each), strict=True):
                        writer.write_behind(number, shard)
                        progress.update(progress.done + harvest.count(number))
    return ActivationStore.open(folder)


@dataclass(frozen=True)
class Harvest:
    """Says what a harvest into a store makes: the same on every machine that has the same weights."""

    origin: Origin
    prompts: int
    shard_prompts: int
    """Prompts of a shard; the last may have fewer."""
    row_bytes: int
    """Of the values of all blocks, for each prompt."""

    @property
    def blocks(self) -> tuple[str, ...]:
        """The blocks, in the order of the model."""
        return tuple(self.origin.widths)

    def span(self, number: int) -> range:
        """Returns the numbers of the prompts of a shard."""
        return range(number * self.shard_prompts, min((number + 1) * self.shard_prompts, self.prompts))

    def count(self, number: int) -> int:
        """Returns how many prompts a shard has."""
        return len(self.span(number))

    def progress(self, missing: Sequence[int]) -> Progress:
        """Returns what shows how far the harvest is, in prompts. missing: the shards that are not there yet."""
        done = self.prompts - sum(map(self.count, missing))
        return Progress(f"harvesting {self.prompts * self.row_bytes / 1e9:.3g} GB", self.prompts, done, "prompt")


def plan_harvest(
    sampler: Sampler,
    blocks: Sequence[str],
    prompts: Sequence[str],
    seed: int,
    branch: str = "both",
    site: str = "update",
    shard_bytes: int = SHARD_BYTES,
) -> Harvest:
    """Returns what `harvest_to_store` makes of the same words. Raises `UserError` where that is nothing, for an unknown
    block, and for branches that the backbone has not."""
    blocks = sampler.backbone.family.in_order(blocks)
    if not blocks or not prompts:
        raise UserError("there is nothing to harvest", remedy="give at least one block and one prompt")
    widths = {one.block: sampler.blocks.width(one) for one in sampler.blocks.sites(blocks, site)}
    row_bytes = {block: rows_per_prompt(sampler, block, branch) * widths[block] * DTYPE.itemsize for block in blocks}
    each = min(max(1, shard_bytes // max(row_bytes.values())), len(prompts))
    decided = made_by(sampler, blocks, prompts, seed, branch, site) | {"shard_prompts": each}
    origin = Origin(sampler.backbone.name, widths, -(-len(prompts) // each), decided)
    return Harvest(origin, len(prompts), each, sum(row_bytes.values()))


def make_shard(
    sampler: Sampler,
    blocks: Sequence[str],
    prompts: Sequence[str],
    seed: int,
    span: range,
    *,
    branch: str = "both",
    site: str = "update",
) -> dict[str, Rows]:
    """Returns the shard of the prompts of those numbers, on the CPU. Raises `UserError` as `stream` does."""
    chunks = stream(sampler, blocks, prompts, seed, start=span.start, stop=span.stop, branch=branch, site=site)
    (shard,) = _cut(chunks, len(span))
    return shard


@contextmanager
def _samplers(sampler: Sampler, batches: int) -> Iterator[list[Sampler]]:
    """Yields the sampler, and on a CPU twins of it: as many as free cores allow and as there are batches for."""
    if sampler.device.type != "cpu":
        yield [sampler]
        return
    each = -(-machine_cores() // MOST_SAMPLERS)
    with threads(each):
        count = min(usable_cores() // each, batches) if batches > 1 else 1
        one = Sampler(sampler.backbone, sampler.pipeline, 1)  # the first twin of a sampler takes it a generation
        twins = [one.twin() for _ in range(count - 1)]
        for twin in twins:
            twin.batch_size = sampler.batch_size
        yield [sampler, *twins]


def _shared(
    samplers: Sequence[Sampler],
    blocks: Sequence[str],
    prompts: Sequence[str],
    seed: int,
    span: tuple[int, int],
    branch: str,
    site: str,
) -> Iterator[Chunk]:
    """Yields what `stream` gives of the prompts of a span, in its order; each batch is made, in a thread, by the
    sampler that is free first. Holds at most a batch more than there are samplers. Closing it waits for the batches
    in hand."""
    (start, stop), size = span, samplers[0].batch_size
    idle: SimpleQueue[Sampler] = SimpleQueue()
    for sampler in samplers:
        idle.put(sampler)

    def work(first: int) -> list[Chunk]:
        sampler = idle.get()
        try:
            last = min(first + size, stop)
            return list(stream(sampler, blocks, prompts, seed, start=first, stop=last, branch=branch, site=site))
        finally:
            idle.put(sampler)

    pool = ThreadPoolExecutor(len(samplers), "riebench-harvest")
    made: deque[Future[list[Chunk]]] = deque()
    try:
        for first in range(start, stop, size):
            made.append(pool.submit(work, first))
            if len(made) > len(samplers):
                yield from made.popleft().result()
        while made:
            yield from made.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


class _Enough(Exception):
    """The last block that is wanted has run, at the last step."""


@torch.no_grad()
def _chunk(
    sampler: Sampler,
    sites: Sequence[Site],
    prompts: Sequence[str],
    numbers: range,
    seed: int,
    codes: Sequence[int],
    size: int,
) -> Chunk:
    """Returns rows of the prompts of those numbers, which fit into one batch of `size`. codes: of the branches
    wanted."""
    ((padded, count),) = fixed_batches(list(numbers), size)
    found = {}
    branches = [sampler.backbone.branches.index(BRANCHES[code]) for code in codes]
    for block, steps in _values(sampler, sites, [prompts[i] for i in padded], [seed + i for i in padded]).items():
        by_branch = torch.stack(steps, dim=1).unflatten(0, (-1, size))
        values = by_branch[branches, :count].transpose(0, 1)
        found[block] = _rows(values, numbers.start, codes)
    return found


def _values(sampler: Sampler, sites: Sequence[Site], prompts: list[str], seeds: list[int]) -> dict[str, list[Tensor]]:
    """Returns block -> for each step `[rows, cells, C]` in bfloat16; under guidance each branch has all rows."""
    kept: dict[str, list[Tensor]] = {site.block: [] for site in sites}

    def keep() -> None:
        for site, (value_bnc,) in lens.take().items():
            kept[site.block].append(value_bnc.to(DTYPE))

    def stop_after_last(*_args) -> None:
        if lens.step == sampler.backbone.steps - 1:
            raise _Enough

    with Lens(sampler.blocks, sites) as lens:
        last = sampler.blocks.module(sites[-1].block)
        with last.register_forward_hook(stop_after_last), suppress(_Enough):
            sampler.run_pipeline(sampler.encode(prompts), seeds, lens, output_type="latent", after_step=keep)
        keep()
    return kept


def _rows(values: Tensor, first: int, codes: Sequence[int]) -> Rows:
    """Returns the rows of values `[prompts, branches, steps, cells, C]`. first: number of the first prompt."""
    shape = values.shape[:-1]
    counts = {
        "prompt": torch.arange(first, first + shape[0]),
        "branch": torch.tensor(codes),
        "step": torch.arange(shape[2]),
        "position": torch.arange(shape[3]),
    }
    columns = {
        name: count.to(COLUMNS[name]).view([-1 if i == axis else 1 for i in range(4)]).expand(shape).flatten()
        for axis, (name, count) in enumerate(counts.items())
    }
    return Rows(values=values.flatten(0, 3), **columns)


def _cut(chunks: Iterator[Chunk], each: int) -> Iterator[dict[str, Rows]]:
    """Yields shards of `each` prompts, on the CPU; the last one may hold fewer. A row is copied once, to its place."""
    shard: dict[str, Rows] = {}
    done = 0  # prompts in it
    for chunk in chunks:
        prompt = next(iter(chunk.values())).prompt
        count = int(prompt[-1] - prompt[0]) + 1
        rows = {block: len(part) // count for block, part in chunk.items()}  # of a prompt
        start = 0
        while start < count:
            if not shard:
                shard = {block: Rows.empty(each * rows[block], part.width) for block, part in chunk.items()}
            taken = min(count - start, each - done)
            for block, n in rows.items():
                shard[block].put(done * n, chunk[block][start * n : (start + taken) * n])
            start, done = start + taken, done + taken
            if done == each:
                yield shard
                shard, done = {}, 0
    if shard:
        yield {block: part[: done * rows[block]] for block, part in shard.items()}


def _branches(sampler: Sampler, branch: str) -> list[int]:
    """Returns the codes of the branches wanted, as in the column `branch`."""
    if branch not in (*BRANCHES, "both"):
        raise UserError(f"branch is {branch!r}", remedy="use cond, uncond or both")
    if not sampler.backbone.guided:
        if branch == "uncond":
            raise UserError(
                f"{sampler.backbone.name} is sampled without guidance and has no unconditional row",
                remedy="use branch 'cond' or 'both'",
            )
        return [0]
    return [code for code, name in enumerate(BRANCHES) if branch in (name, "both")]


def made_by(
    sampler: Sampler, blocks: Sequence[str], prompts: Sequence[str], seed: int, branch: str, site: str
) -> dict[str, object]:
    """Returns what decides the rows beside the backbone, as JSON has it."""
    family, pipeline = sampler.backbone.family, sampler.pipeline
    return {
        "weights_sha256": weights_sha256(sampler.denoiser, *(getattr(pipeline, part) for part in family.text_encoders)),
        "prompts": len(prompts),
        "prompts_sha256": hashlib.sha256(json_text(list(prompts)).encode()).hexdigest(),
        "seed": seed,
        "steps": sampler.backbone.steps,
        "guidance": sampler.backbone.guidance,
        "branch": branch if sampler.backbone.guided else "cond",
        "site": site,
        "dtype": dtype_name(sampler.denoiser.dtype),
        "pixels": [sampler.height, sampler.width],
        "grids": {block: list(grid) for block, grid in sampler.grids(blocks).items()},
    }
