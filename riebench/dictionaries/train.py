"""`riebench train`: a grid of sparse autoencoders of several blocks, all trained on the same batches."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from riebench.core.claims import claim_folder, refuse_others
from riebench.core.errors import UserError
from riebench.core.files import named_path
from riebench.core.json_text import json_text
from riebench.core.ray_cluster import Cluster
from riebench.core.ray_pool import call_on_cluster
from riebench.dictionaries.data import TrainingData
from riebench.dictionaries.ray import train_on_cluster
from sae_models import checkpoint, index
from sae_models.architectures import L1, Architecture, AuxK, BatchTopK, JumpReLU, Matryoshka, Restart, TopK
from sae_models.evaluation import Evaluation, Tally
from sae_models.trainer import STATE_FILE, TrainConfig, train

KIND = "folder of dictionaries"
LOGS = "training"  # sub-folder of logs and states


@dataclass(frozen=True)
class Grid:
    """Says which SAEs are trained of each block: every combination of these."""

    sparsities: tuple[TopK | L1 | JumpReLU, ...]
    expansions: tuple[int, ...]
    """Features, as multiples of the channels."""
    seeds: tuple[int, ...] = (0,)
    """Seeds of where features start."""
    matryoshka: Matryoshka | None = None
    revival: AuxK | Restart | None = None

    def members(self, width: int) -> Iterator[tuple[str, Architecture]]:
        """Yields (name, architecture) of each, for rows of a width."""
        for expansion, sparsity, seed in itertools.product(self.expansions, self.sparsities, self.seeds):
            parts = [_name(sparsity), f"x{expansion}"]
            parts += ["nested"] if self.matryoshka else []
            parts += [f"s{seed}"] if seed else []
            yield (
                "-".join(parts),
                Architecture(width, expansion * width, sparsity, self.matryoshka, self.revival, seed),
            )


def _name(sparsity: TopK | L1 | JumpReLU) -> str:
    match sparsity:
        case BatchTopK():
            return f"batch-topk-k{sparsity.k}"
        case TopK():
            return f"topk-k{sparsity.k}"
        case L1():
            return f"l1-{sparsity.weight:g}"
        case JumpReLU():
            return f"jumprelu-{sparsity.l0_weight:g}"


@dataclass(frozen=True)
class _Job:
    """A dictionary to train."""

    backbone: str
    block: str
    name: str
    architecture: Architecture
    training: dict[str, Any] = field(compare=False)
    """All that is needed to train it again, as JSON has it."""

    @property
    def folder(self) -> str:
        """The folder of its checkpoint, relative to the index."""
        return f"{self.backbone.replace('@', '-')}/{self.block}/{self.name}"


def train_dictionaries(
    data: TrainingData,
    grid: Grid,
    out: Path,
    config: TrainConfig,
    batch_size: int,
    *,
    checkpoint_every: int = 1_000,
    trackers: Sequence[str] = (),
    cluster: Cluster | None = None,
) -> None:
    """Trains every SAE of the grid for each block of the data, evaluates and registers them in the index of `out`.

    All go through the same batches. Weights are stored in half precision, and evaluated as stored, on the prompts that
    are kept back. A dictionary that `out` holds already, of the same settings and the same data, is left as it is;
    blocks that need nothing more are not harvested. Logs and pictures of the course stay in `training/`, and until it
    ends the state of a training that was killed, which goes on when it is called again.

    trackers: names, as `train` takes them. cluster: where a group of the SAEs is trained on each GPU, or CPU
    (`train_on_cluster`), each of which makes the batches for itself, and where they are evaluated; None for this
    process. Raises `UserError` for settings that cannot be meant, as `train` does, and for an `out`
    that holds something else; what was registered stays.
    """
    out = named_path(out)
    refuse_others(out, KIND)
    jobs = list(_jobs(data, grid, config, batch_size))
    known = {entry.key: entry for entry in index.entries(out)}
    done = [job for job in jobs if _is_done(known.get((job.backbone, job.block, job.name)), job, out)]
    for job in done:
        print(f"{job.block} {job.name}: trained already")
    left = [job for job in jobs if job not in done]
    if not left:
        return
    blocks = [block for block in data.blocks if any(job.block == block for job in left)]
    architectures = [replace(job.architecture, block=blocks.index(job.block)) for job in left]
    folder = out / LOGS / _key(left)
    passes = config.steps * batch_size / data.rows()
    print(f"{len(left)} SAEs, {config.steps} steps of {batch_size} vectors, each vector {passes:.2g} times")
    print(f"log: {folder}", flush=True)
    how = {"folder": folder, "checkpoint_every": checkpoint_every, "trackers": trackers}
    if cluster:
        claim_folder(out, KIND)
        maker = partial(_batches, data.elsewhere(), blocks, batch_size)
        saes = train_on_cluster(maker, architectures, config, cluster=cluster, **how)
    else:
        batches = data.batches(blocks, batch_size)
        print(f"shuffling buffer: {batches.bytes / 1e6:.0f} MB on {data.device}", flush=True)
        claim_folder(out, KIND)
        saes = train(batches, architectures, config, **how)
    digests = [
        checkpoint.save(
            out / job.folder,
            sae.half(),
            {"backbone": job.backbone, "block": job.block, "site": data.site, "training": job.training},
        )
        for job, sae in zip(left, saes, strict=True)
    ]
    folders = [(job.block, (out / job.folder).absolute()) for job in left]
    if cluster:
        evaluations = call_on_cluster(cluster, partial(_evaluate, data.elsewhere(), blocks, folders), "the evaluation")
    else:
        evaluations = _evaluate(lambda _device: data, blocks, folders, data.device)
    entries = [_entry(job, data.site, *each, out) for job, *each in zip(left, digests, evaluations, strict=True)]
    index.register(*entries, root=out)
    for state in folder.rglob(STATE_FILE):
        state.unlink()
    for number, (job, found) in enumerate(zip(left, evaluations, strict=True), start=1):
        print(
            f"[{number}/{len(left)}] {job.block} {job.name}: "
            f"explained variance {found.explained_variance_pooled:.3f} pooled, "
            f"{found.explained_variance_mean:.3f} mean over dimensions; L0 {found.l0:.1f}; dead {found.dead_share:.1%}",
            flush=True,
        )


def _jobs(data: TrainingData, grid: Grid, config: TrainConfig, batch_size: int) -> Iterator[_Job]:
    made_by, recipe = data.made_by(), asdict(config)
    del recipe["compile"]  # which changes the rounding alone
    for block in data.blocks:
        for name, architecture in grid.members(data.widths[block]):
            settings = {"batch_size": batch_size, "architecture": repr(architecture), "data": made_by}
            yield _Job(data.backbone, block, index.name_of_site(name, data.site), architecture, recipe | settings)


def _is_done(entry: index.Entry | None, job: _Job, root: Path) -> bool:
    """Returns whether a dictionary was trained like this, and its checkpoint is the registered one."""
    if entry is None or entry.training != job.training:
        return False
    try:
        index.open(entry, root=root)
    except UserError:
        return False
    return True


def _key(jobs: Sequence[_Job]) -> str:
    """Returns a folder name for a training: the same for the same jobs and settings, another for any other."""
    return hashlib.sha256(json_text([[job.folder, job.training] for job in jobs]).encode()).hexdigest()[:16]


def _batches(
    make_data: Callable[[torch.device], TrainingData], blocks: Sequence[str], batch_size: int, device: torch.device
) -> Iterator[Tensor]:
    """Returns the batches that data give on a device."""
    return make_data(device).batches(blocks, batch_size)


def _evaluate(
    make_data: Callable[[torch.device], TrainingData],
    blocks: Sequence[str],
    saved: Sequence[tuple[str, Path]],
    device: torch.device,
) -> list[Evaluation]:
    """Returns the evaluation of each dictionary, as it was saved, on the rows that were kept back. saved: (block,
    folder) of each."""
    tallies = [Tally(checkpoint.load(folder, device=device)) for _, folder in saved]
    for rows in make_data(device).held_back(blocks):
        for (block, _), tally in zip(saved, tallies, strict=True):
            tally.add(rows[block])
    return [tally.evaluation() for tally in tallies]


def _entry(job: _Job, site: str, sha256: str, evaluation: Evaluation, root: Path) -> index.Entry:
    return index.Entry(
        name=job.name,
        backbone=job.backbone,
        block=job.block,
        **asdict(checkpoint.shape_of(root / job.folder)),
        folder=job.folder,
        sha256=sha256,
        site=site,
        evaluation=asdict(evaluation),
        training=job.training,
    )
