"""Harvest: block updates of many generations, straight into the training of sparse autoencoders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from riebench.backbones import BACKBONES
from riebench.errors import UserError
from riebench.lens import find_sites
from riebench.progress import Progress
from riebench.sampling import Request, Sampler, choose_device, load_sampler
from sae_models import checkpoint, index
from sae_models.evaluation import evaluate
from sae_models.topk import TopKConfig
from sae_models.trainer import TrainConfig, shuffled_batches, train

HARVEST_BATCH, TEST_SHARE = 64, 16


def harvest(sampler: Sampler, blocks: Sequence[str], prompts: Sequence[str], seed: int) -> dict[str, Tensor]:
    """Block -> update vectors `[prompts * steps * cells, C]` of one generation a prompt, each from its own noise.

    The autoencoder of the pipeline is not run.
    """
    sites = find_sites(sampler.unet, blocks, "update")
    rows: dict[str, list[Tensor]] = {block: [] for block in blocks}
    with Progress("harvesting updates", total=len(prompts), unit="prompt") as progress:
        for start in range(0, len(prompts), sampler.batch_size):
            chunk = prompts[start : start + sampler.batch_size]
            requests = [Request(prompt, seed + start + i) for i, prompt in enumerate(chunk)]
            for trace in sampler.trace(requests, sites):
                for site, value in trace.items():
                    rows[site.block].append(value.permute(0, 2, 3, 1).flatten(0, 2))
            progress.update(start + len(chunk))
    return {block: torch.cat(parts) for block, parts in rows.items()}


def world_prompts(count: int, seed: int) -> list[str]:
    """Captions of random tinyworld scenes out of the training split."""
    from riebench.tinyworld.captions import caption
    from riebench.tinyworld.scenes import Scene, sample_attributes

    return [caption(Scene.from_indices(row)) for row in sample_attributes(np.random.default_rng(seed), count, "train")]


def train_dictionaries(
    backbone_name: str,
    blocks: Sequence[str],
    out: Path,
    *,
    k: int,
    expansion: int,
    prompts: int,
    steps: int,
    seed: int,
    device: str,
) -> None:
    """Harvests, trains one TopK SAE a block, evaluates it on held-back prompts and writes it with its index entry.

    The last 1/16 of the prompts is kept back for evaluation. A run that finds its state in `out` goes on from there.
    """
    backbone = BACKBONES.get(backbone_name)
    if prompts < TEST_SHARE:
        raise UserError(f"{prompts} prompts are too few", remedy=f"use at least {TEST_SHARE}")
    sampler = load_sampler(backbone, choose_device(device), HARVEST_BATCH)
    harvested = harvest(sampler, blocks, world_prompts(prompts, seed), seed)
    for block, rows in harvested.items():
        held_back = len(rows) // TEST_SHARE
        train_rows, test_rows = rows[:-held_back], rows[-held_back:]
        width = rows.shape[1]
        sae_config = TopKConfig(width=width, num_features=expansion * width, k=k)
        config = TrainConfig(steps=steps, batch_size=min(TrainConfig.batch_size, len(train_rows)), seed=seed)
        name = f"topk-k{k}-x{expansion}"
        folder = f"{backbone.name.replace('@', '-')}/{block}/{name}"
        batches = shuffled_batches(train_rows, config.batch_size, seed=seed)
        sae = train(batches, config, sae_config, folder=Path(out) / "state" / folder)
        found = evaluate(sae, test_rows)
        training = {**asdict(config), "rows": len(train_rows), "prompts": prompts}
        metadata = {"backbone": backbone.name, "block": block, "training": training}
        digest = checkpoint.save(Path(out) / folder, sae, metadata)
        index.register(
            index.Entry(
                name=name,
                backbone=backbone.name,
                block=block,
                kind="topk",
                k=k,
                num_features=sae_config.num_features,
                width=width,
                folder=folder,
                sha256=digest,
                evaluation=asdict(found),
                training=training,
            ),
            root=Path(out),
        )
        print(
            f"{block} {name}: explained variance {found.explained_variance_pooled:.3f} pooled, "
            f"{found.explained_variance_mean:.3f} mean over dimensions; L0 {found.l0:.1f}; dead {found.dead_share:.1%}"
        )
