"""Harvesting on a Ray cluster: a sampler stays loaded on each GPU, or each CPU, and makes whole shards of a store."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from riebench.backbones.table import Backbone
from riebench.core.errors import UserError
from riebench.core.ray_cluster import Cluster, Terms
from riebench.core.ray_pool import Job, Pool
from riebench.dictionaries.harvest import SHARD_BYTES, Harvest, make_shard, plan_harvest
from riebench.generation.sampler import Sampler, load_sampler
from sae_models.activation_store import ActivationStore, Encoded, StoreWriter, encode


class HarvestWorker:
    """A sampler that stays loaded, in a process of its own, and makes shards of a store."""

    _sampler: Sampler

    def load(
        self,
        terms: Terms,
        backbone: Backbone,
        dtype: torch.dtype,
        batch_size: int,
        blocks: Sequence[str],
        prompts: Sequence[str],
        seed: int,
        of: Mapping[str, str],
        shard_bytes: int,
    ) -> Harvest:
        """Returns what is to be harvested, as the weights here have it. of: branch and site. Raises `UserError` as
        `Terms.settle` and `plan_harvest` do, and where weights are missing."""
        self._sampler = load_sampler(backbone, terms.settle(), batch_size, dtype)
        self._words, self._of = (blocks, prompts, seed), dict(of)
        self._harvest = plan_harvest(self._sampler, *self._words, **of, shard_bytes=shard_bytes)
        return self._harvest

    def work(self, number: int, harvest: Harvest) -> dict[str, Encoded]:
        """Returns block -> the file of a shard. Raises `UserError` as `harvest.stream` does, and where the harvest is
        not that which the weights here give."""
        if harvest != self._harvest:
            here, there = self._harvest.origin.made_by, harvest.origin.made_by
            differing = ", ".join(name for name in there if there[name] != here.get(name)) or "blocks"
            raise UserError(
                f"{platform.node()} harvests with another {differing} than the first worker",
                remedy="have the same weights and versions on every node",
            )
        shard = make_shard(self._sampler, *self._words, harvest.span(number), **self._of)
        return {block: encode(rows) for block, rows in shard.items()}


def harvest_on_cluster(
    cluster: Cluster,
    backbone: Backbone,
    blocks: Sequence[str],
    prompts: Sequence[str],
    seed: int,
    folder: Path,
    *,
    dtype: torch.dtype,
    batch_size: int = 0,
    branch: str = "both",
    site: str = "update",
    shard_bytes: int = SHARD_BYTES,
) -> ActivationStore:
    """Harvests into a store as `harvest_to_store` does, to the same bytes (on a CPU, with as many threads), and returns
    it complete. Each shard is made by a worker and written here, so the workers need not see the folder; of this
    machine no weights are asked. A shard whose worker dies is made by another one.

    batch_size: prompts at once; 0 takes what suits the device. Memory here: a shard of every block, and what Ray's
    object store keeps of those that were not fetched yet. Raises `UserError` as `harvest_to_store` and `Pool.work` do,
    and where a worker has other weights than the first.
    """
    words = backbone, dtype, batch_size, blocks, prompts, seed, {"branch": branch, "site": site}, shard_bytes
    with Pool(cluster, HarvestWorker, words) as pool:
        harvest = pool.first()
        with StoreWriter(folder, harvest.origin) as writer, harvest.progress(writer.missing) as progress:
            jobs = (Job(f"shard {number}", (number, harvest), number) for number in writer.missing)
            for job, shard in pool.work(jobs):
                writer.write_encoded(job.number, shard.items())
                progress.update(progress.done + harvest.count(job.number))
    return ActivationStore.open(folder)
