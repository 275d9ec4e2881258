"""Harvest: block updates of many generations, straight into the training of sparse autoencoders."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from riebench.backbones import BACKBONES, Backbone
from riebench.errors import UserError
from riebench.lens import block_module, find_sites
from riebench.loading import choose_device, weights_sha256
from riebench.progress import Progress
from riebench.prompts import world_prompts
from riebench.sampling import Request, Sampler, load_sampler
from sae_models import checkpoint, index
from sae_models.architectures import Architecture, Restart, TopK
from sae_models.evaluation import evaluate
from sae_models.topk import TopKConfig, TopKSAE
from sae_models.trainer import TrainConfig, shuffled_batches, train

HARVEST_BATCH, TEST_SHARE = 64, 16
BATCH_SIZE, LR, REPORT_EVERY, DEAD_AFTER = 2_048, 2e-3, 25, 25_000  # of training, for 768 features or so


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
    return {block: torch.cat(rows.pop(block)) for block in blocks}


def train_dictionaries(
    backbone: str | Backbone,
    blocks: Sequence[str],
    out: Path,
    *,
    k: Sequence[int] = (4, 8, 16),
    expansion: Sequence[int] = (4, 8, 16),
    prompts: int = 4096,
    steps: int = 600,
    seed: int = 0,
    device: str = "auto",
) -> None:
    """Trains and registers a TopK SAE for each block, expansion (features / channels) and k, all from one harvest.

    The last 1/16 of the prompts is kept back for evaluation. Weights are stored in half precision, and evaluated as
    stored. A dictionary that `out` holds already, of the same settings and the same U-Net, is left as it is; blocks
    that need nothing more are not harvested. Raises `UserError` for settings that cannot be meant.
    """
    backbone, out = BACKBONES.get(backbone) if isinstance(backbone, str) else backbone, Path(out)
    if prompts < TEST_SHARE:
        raise UserError(f"{prompts} prompts are too few", remedy=f"use at least {TEST_SHARE}")
    config = TrainConfig(steps=steps, lr=LR, report_every=REPORT_EVERY)
    sampler = load_sampler(backbone, choose_device(device), HARVEST_BATCH)
    training = {
        **asdict(config),
        "batch_size": BATCH_SIZE,
        "seed": seed,
        "prompts": prompts,
        "unet_sha256": weights_sha256(sampler.unet),
    }
    jobs = _jobs(sampler.unet, backbone, blocks, k, expansion)
    known = {entry.key: entry for entry in index.entries(out)}
    done = [job for job in jobs if _is_done(known.get((backbone.name, job.block, job.name)), training, out)]
    for job in done:
        print(f"{job.block} {job.name}: trained already")
    left = [job for job in jobs if job not in done]
    if not left:
        return
    harvested = harvest(sampler, list(dict.fromkeys(job.block for job in left)), world_prompts(prompts, seed), seed)
    for number, job in enumerate(left, start=1):
        rows = harvested[job.block]
        held_back = prompts // TEST_SHARE * (len(rows) // prompts)
        state = out / "state" / _key(job, training)
        sae = _train(job, rows[:-held_back], config, seed, state, sampler.device)
        entry = _store(job, sae, rows[-held_back:].to(sampler.device), training, out)
        index.register(entry, root=out)
        shutil.rmtree(state)
        found = entry.evaluation
        print(
            f"[{number}/{len(left)}] {job.block} {job.name}: "
            f"explained variance {found['explained_variance_pooled']:.3f} pooled, "
            f"{found['explained_variance_mean']:.3f} mean over dimensions; "
            f"L0 {found['l0']:.1f}; dead {found['dead_share']:.1%}",
            flush=True,
        )


@dataclass(frozen=True)
class _Job:
    """A dictionary to train."""

    backbone: str
    block: str
    name: str
    config: TopKConfig

    @property
    def folder(self) -> str:
        """Of its checkpoint, relative to the index."""
        return f"{self.backbone.replace('@', '-')}/{self.block}/{self.name}"


def _jobs(
    unet: nn.Module, backbone: Backbone, blocks: Sequence[str], ks: Sequence[int], expansions: Sequence[int]
) -> list[_Job]:
    widths = {block: block_module(unet, block).config.in_channels for block in blocks}
    return [
        _Job(backbone.name, block, f"topk-k{k}-x{expansion}", TopKConfig(widths[block], expansion * widths[block], k))
        for block in blocks
        for expansion in expansions
        for k in ks
    ]


def _is_done(entry: index.Entry | None, training: dict, root: Path) -> bool:
    """Whether a dictionary was trained like this, and its checkpoint is the registered one."""
    if entry is None or entry.training != training:
        return False
    try:
        index.open(entry, root=root)
    except UserError:
        return False
    return True


def _key(job: _Job, training: dict) -> str:
    """A folder name for the state of a training: the same for the same job and settings, another for any other."""
    return hashlib.sha256(json.dumps([job.folder, training]).encode()).hexdigest()[:16]


def _train(job: _Job, rows: Tensor, config: TrainConfig, seed: int, state: Path, device: torch.device) -> TopKSAE:
    """Trains on rows `[n, C]`; goes on from what a killed training left in `state`."""
    if len(rows) < BATCH_SIZE:
        raise UserError(
            f"there are {len(rows)} vectors to train on, and a step takes {BATCH_SIZE}",
            remedy="use more prompts",
        )
    batches = shuffled_batches(rows.to(device), BATCH_SIZE, seed=seed)
    sparsity, revival = TopK(job.config.k), Restart(DEAD_AFTER)
    architecture = Architecture(job.config.width, job.config.num_features, sparsity, revival=revival, seed=seed)
    return train(batches, [architecture], config, folder=state)[0]


def _store(job: _Job, sae: TopKSAE, test_rows: Tensor, training: dict, root: Path) -> index.Entry:
    """Saves in half precision, and evaluates what was saved on rows `[n, C]`."""
    metadata = {"backbone": job.backbone, "block": job.block, "training": training}
    sha256 = checkpoint.save(root / job.folder, sae.half(), metadata)
    found = evaluate(checkpoint.load(root / job.folder, device=test_rows.device), test_rows)
    return index.Entry(
        name=job.name,
        backbone=job.backbone,
        block=job.block,
        kind="topk",
        **asdict(job.config),
        folder=job.folder,
        sha256=sha256,
        evaluation=asdict(found),
        training=training,
    )
