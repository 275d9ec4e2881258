"""Training of many sparse autoencoders on one stream of rows. Resumes exactly; its log is files."""

from __future__ import annotations

import dataclasses
import itertools
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from riebench.errors import UserError
from riebench.files import replacing, write_text
from riebench.progress import Progress
from sae_models.architectures import Architecture, Restart, TopK
from sae_models.jumprelu import JumpReLUSAE
from sae_models.normalisation import KINDS, Normalisation
from sae_models.stack import Losses, Stack
from sae_models.topk import TopKSAE

CALIBRATION_ROWS = 32_768  # the geometric median and the normalisation are estimated on up to this many
STACK_WEIGHTS = 2**23  # of a decoder, at most, in a stack: larger products gain nothing, and leave a CPU's cache
ADAM_EPS = 6.25e-10  # (Gao et al. 2024, appendix A)
STATE_FILE, LOG_FILE = "training.pt", "log.jsonl"
COMPUTE = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class TrainConfig:
    """How autoencoders are trained. Raises `UserError` for values that cannot be meant."""

    steps: int = 20_000
    """Optimiser steps, a batch each."""
    lr: float = 1e-4
    """Adam's peak learning rate. More features want less: 2e-3 suits 768 of them, 1e-4 suits 5,120."""
    warmup: float = 0.02
    """Share of the steps in which the learning rate rises linearly from zero."""
    decay: float = 0.3
    """Share of the steps, the last ones, in which it falls linearly to zero."""
    normalisation: str = "scale"
    """Of the rows: "none", "mean", "scale" or "whiten" (`Normalisation.of`)."""
    compute: str = "float32"
    """Of the products: "float32" or "bfloat16". Weights and Adam's moments stay in float32."""
    report_every: int = 100
    """Steps between two reads of the statistics, and of which features are dead: each waits for the device. Dead
    features start again (`Restart`) at these steps alone."""

    def __post_init__(self) -> None:
        for name in ("steps", "report_every"):
            if getattr(self, name) < 1:
                raise UserError(f"training {name} is {getattr(self, name)}", remedy="give a whole number of at least 1")
        for name in ("warmup", "decay"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"training {name} is {getattr(self, name)}", remedy="give a share between 0 and 1")
        for name, choices in (("normalisation", KINDS), ("compute", tuple(COMPUTE))):
            if getattr(self, name) not in choices:
                raise UserError(
                    f"training {name} is {getattr(self, name)!r}", remedy=f"choose one of {', '.join(choices)}"
                )
        if not self.lr > 0:
            raise UserError(f"training lr is {self.lr}", remedy="give a number above 0")

    def lr_at(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        rise = (step + 1) / max(1.0, self.warmup * self.steps)
        fall = (self.steps - step) / max(1.0, self.decay * self.steps)
        return self.lr * min(1.0, rise, fall)


@dataclass
class _Training:
    """All that a resumed run needs."""

    step: int
    rows: int
    stacks: list[Stack]
    optimisers: list[torch.optim.Adam]
    normalisations: list[Normalisation]
    """One a block."""


def train(
    batches: Iterator[Tensor],
    architectures: Sequence[Architecture],
    config: TrainConfig,
    *,
    folder: Path | None = None,
    checkpoint_every: int = 1_000,
) -> list[TopKSAE | JumpReLUSAE]:
    """Trains every architecture on every batch, on the device of the batches, and returns them in the order given.

    batches: raw rows `[n, d]`, or `[blocks, n, d]` with an architecture's `block` among them. Those that differ by the
    seed alone are stacked: they go through every product together.

    With a `folder`, `training.pt` holds the state, written every `checkpoint_every` steps and at the end, and training
    goes on from what is found there, bit for bit as if it had never stopped if the batches are the same: `batches` is
    asked to `seek(step)` where it can, else the batches used are taken from it and left. `log.jsonl` gains a line each
    report: step, rows, lr, seconds since this run began, and of each autoencoder loss, ev (explained variance), l0 and
    dead (share of the features).

    Rows are normalised, b_dec starts as their geometric median, and both are folded into what is returned, which takes
    raw rows. Raises `UserError` for rows of a wrong shape, not finite or all the same, batches that end early, and a
    state file that is broken or of another configuration; what was saved stays.
    """
    path = None if folder is None else Path(folder) / STATE_FILE
    log = _Log(None if folder is None else Path(folder) / LOG_FILE)
    if path is not None and path.exists():
        training = _read_state(path, architectures, config)
        batches = _from_step(batches, training.step)
        log.cut(training.step)
    else:
        training, batches = _start(batches, architectures, config)
        log.cut(0)
    first_bad_step = None
    with Progress(_label(architectures), total=config.steps, done=training.step) as progress:
        while training.step < config.steps:
            step = training.step
            batch = _batch(batches, step, architectures)
            if first_bad_step is None:
                _move(training, batch.device)
                first_bad_step = torch.full((), config.steps, device=batch.device)
            bad = ~torch.isfinite(batch).all()
            first_bad_step = torch.where(bad, first_bad_step.clamp(max=step), first_bad_step)
            losses = _advance(training, batch, config)
            last = training.step == config.steps
            save = path is not None and (last or training.step % checkpoint_every == 0)
            report = last or training.step % config.report_every == 0
            if (save or report) and first_bad_step.item() < config.steps:
                raise _not_finite(int(first_bad_step))
            if report:
                _revive(training, losses, config)
                statistics = [each.statistics_s4.tolist() for each in losses]
                found = _by_architecture(training.stacks, architectures, statistics)
                log.add(training, config.lr_at(step), found)
                progress.update(training.step, _note(found))
            if save:
                _write_state(path, training, architectures, config)
    exported = [stack.exported(training.normalisations[stack.architecture.block]) for stack in training.stacks]
    return _by_architecture(training.stacks, architectures, exported)


class ShuffledBatches:
    """Batches of rows without end: each epoch goes through the rows in an order of its own, drawn from the seed."""

    def __init__(self, rows_nd: Tensor, batch_size: int, seed: int) -> None:
        self.rows_nd, self.batch_size, self.seed, self.step = rows_nd, batch_size, seed, 0
        self._order = lru_cache(maxsize=1)(self._order_of)

    def seek(self, step: int) -> None:
        """The next batch is that of `step`, counted from 0."""
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
    """`batches` for `train`, of rows in memory.

    Rows that do not fill the last batch of an epoch are left out of it. Raises `UserError` with too few for one batch.
    """
    if len(rows_nd) < batch_size:
        raise UserError(f"{len(rows_nd)} rows do not fill a batch of {batch_size}", remedy="lower batch_size")
    return ShuffledBatches(rows_nd, batch_size, seed)


def geometric_median(rows_nd: Tensor, *, tolerance: float = 1e-7, max_iterations: int = 500) -> Tensor:
    """The point `[d]` with the least sum of distances to the rows, by Weiszfeld's iteration from the mean, in float64.

    Stops when a step is shorter than `tolerance` times the mean distance. (Weiszfeld 1937)
    """
    rows_nd = rows_nd.double()
    median_d = rows_nd.mean(0)
    for _ in range(max_iterations):
        distance_n = (rows_nd - median_d).norm(dim=1)
        typical = distance_n.mean()
        if typical == 0:
            break
        weight_n = 1 / distance_n.clamp_min(1e-9 * typical)
        moved_d = weight_n @ rows_nd / weight_n.sum()
        shift = (moved_d - median_d).norm()
        median_d = moved_d
        if shift <= tolerance * typical:
            break
    return median_d


def _start(
    batches: Iterator[Tensor], architectures: Sequence[Architecture], config: TrainConfig
) -> tuple[_Training, Iterator[Tensor]]:
    """Calibrates on the first batches, which are trained on all the same."""
    if not architectures:
        raise UserError("there is no architecture to train", remedy="give at least one")
    first: list[Tensor] = []
    while len(first) < config.steps and sum(batch.shape[1] for batch in first) < CALIBRATION_ROWS:
        first.append(_batch(batches, len(first), architectures))
        if not torch.isfinite(first[-1]).all():
            raise _not_finite(len(first) - 1)
    rows_bnd = torch.cat(first, dim=1)[:, :CALIBRATION_ROWS]
    normalisations = [Normalisation.of(rows_nd, config.normalisation) for rows_nd in rows_bnd]
    training = _new(architectures, config, normalisations)
    _move(training, rows_bnd.device)
    for block, normalisation in enumerate(normalisations):
        rows_nd = normalisation.apply(rows_bnd[block])
        median_d = geometric_median(rows_nd).float()
        for stack in training.stacks:
            if stack.architecture.block == block:
                stack.start(rows_nd, median_d, _k_at(stack, 0, config))
    return training, itertools.chain(first, batches)


def _new(architectures: Sequence[Architecture], config: TrainConfig, normalisations: list[Normalisation]) -> _Training:
    """Stacks, still of zeros, of those that differ by the seed alone."""
    alike: dict[Architecture, list[Architecture]] = {}
    for architecture in architectures:
        alike.setdefault(_but_for_seed(architecture), []).append(architecture)
    stacks = []
    for one, members in alike.items():
        size = max(1, STACK_WEIGHTS // (one.width * one.num_features))
        for first in range(0, len(members), size):
            stacks.append(Stack(members[first : first + size], COMPUTE[config.compute]))
    optimisers = [torch.optim.Adam(stack.parameters(), lr=config.lr, eps=ADAM_EPS, fused=True) for stack in stacks]
    return _Training(0, 0, stacks, optimisers, normalisations)


def _but_for_seed(architecture: Architecture) -> Architecture:
    return dataclasses.replace(architecture, seed=0)


def _by_architecture(stacks: list[Stack], architectures: Sequence[Architecture], values: list[list]) -> list:
    """Values of each stack's members, in the order of the architectures."""
    waiting: dict[Architecture, list] = {}
    for stack, each in zip(stacks, values, strict=True):
        waiting.setdefault(_but_for_seed(stack.architecture), []).extend(each)
    return [waiting[_but_for_seed(architecture)].pop(0) for architecture in architectures]


def _move(training: _Training, device: torch.device) -> None:
    """To the device of the batches."""
    for stack, optimiser in zip(training.stacks, training.optimisers, strict=True):
        stack.to(device)
        stack.dead = [dead.to(device) for dead in stack.dead]
        optimiser.load_state_dict(optimiser.state_dict())  # which puts the moments where the parameters are
    training.normalisations = [
        Normalisation(**{name: _on(value, device) for name, value in each.state().items()})
        for each in training.normalisations
    ]


def _on(value: Any, device: torch.device) -> Any:
    return value.to(device) if isinstance(value, Tensor) else value


def _batch(batches: Iterator[Tensor], step: int, architectures: Sequence[Architecture]) -> Tensor:
    """`[blocks, n, d]` in float32."""
    try:
        batch = next(batches)
    except StopIteration:
        raise UserError(
            f"the batches end before step {step}", remedy="lower steps, or give batches of more rows or epochs"
        ) from None
    batch = batch[None] if batch.ndim == 2 else batch
    widths = sorted({architecture.width for architecture in architectures})
    blocks = 1 + max(architecture.block for architecture in architectures)
    if batch.ndim != 3 or batch.shape[1] == 0 or widths != [batch.shape[2]] or batch.shape[0] < blocks:
        raise UserError(
            f"the batch of step {step} has shape {tuple(batch.shape)}, and the architectures want "
            f"{blocks} block(s) of width {', '.join(map(str, widths))}",
            remedy="make width and block agree with the rows",
        )
    return batch.float()


def _from_step(batches: Iterator[Tensor], step: int) -> Iterator[Tensor]:
    if hasattr(batches, "seek"):
        batches.seek(step)
    elif sum(1 for _ in itertools.islice(batches, step)) < step:
        raise UserError(
            f"the batches end before step {step}, from which to resume", remedy="give the batches from the first on"
        )
    return batches


def _not_finite(step: int) -> UserError:
    return UserError(
        f"the batch of step {step} holds NaN or infinite values",
        remedy="check how the rows were captured; half precision overflows where bfloat16 does not",
    )


def _k_at(stack: Stack, step: int, config: TrainConfig) -> int:
    """Of stacks that have one; else 0."""
    sparsity = stack.architecture.sparsity
    return sparsity.k_at(step, config.steps) if isinstance(sparsity, TopK) else 0


def _advance(training: _Training, batch: Tensor, config: TrainConfig) -> list[Losses]:
    """One optimiser step of all, in place."""
    used = {stack.architecture.block for stack in training.stacks}
    x_nd = {block: training.normalisations[block].apply(batch[block]) for block in used}
    found = []
    for stack, optimiser in zip(training.stacks, training.optimisers, strict=True):
        for group in optimiser.param_groups:
            group["lr"] = config.lr_at(training.step)
        losses = stack.losses(x_nd[stack.architecture.block], _k_at(stack, training.step, config))
        optimiser.zero_grad(set_to_none=True)
        losses.loss_s.sum().backward()
        stack.project_gradient()
        optimiser.step()
        stack.renormalise()
        found.append(dataclasses.replace(losses, loss_s=losses.loss_s.detach()))  # lets go of the graph
    training.step += 1
    training.rows += batch.shape[1]
    return found


def _revive(training: _Training, losses: list[Losses], config: TrainConfig) -> None:
    """Lists the dead features, and restarts them where that is asked for and the learning rate does not fall yet."""
    for stack, optimiser, each in zip(training.stacks, training.optimisers, losses, strict=True):
        stack.list_dead()
        if isinstance(stack.architecture.revival, Restart) and training.step <= (1 - config.decay) * config.steps:
            stack.restart(each.residual_snd, optimiser, training.step)


def _label(architectures: Sequence[Architecture]) -> str:
    if len(architectures) > 1:
        return f"training {len(architectures)} SAEs"
    return f"training SAE {architectures[0].width} -> {architectures[0].num_features}, {architectures[0].sparsity}"


def _note(found: list[list[float]]) -> str:
    """The mean over autoencoders of what a log's line has of each."""
    _, explained, l0, dead = (sum(column) / len(found) for column in zip(*found, strict=True))
    return f"{'mean ' if len(found) > 1 else ''}EV {explained:.3f}, L0 {l0:.1f}, dead {dead:.1%}"


class _Log:
    """`log.jsonl`, or nothing where there is no path."""

    def __init__(self, path: Path | None) -> None:
        self.path, self.began = path, time.monotonic()

    def cut(self, step: int) -> None:
        """Takes out what comes after a step, which is about to come again, and a last line cut short."""
        if self.path is None or not self.path.exists():
            return
        kept = []
        for line in self.path.read_text().splitlines():
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line + "\n")
            except ValueError:
                break
        write_text(self.path, "".join(kept))

    def add(self, training: _Training, lr: float, found: list[list[float]]) -> None:
        if self.path is None:
            return
        line = {
            "step": training.step,
            "rows": training.rows,
            "lr": lr,
            "seconds": round(time.monotonic() - self.began, 3),
            "saes": [dict(zip(("loss", "ev", "l0", "dead"), each, strict=True)) for each in found],
        }
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(self.path, "a") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            raise UserError(
                f"cannot write {self.path}: {error.strerror or error}",
                remedy="choose a folder you may write to, on a disk with room",
            ) from error


def _description(architectures: Sequence[Architecture], config: TrainConfig) -> dict[str, str]:
    """Name -> value of all that decides a training, as a state file keeps it."""
    settings = {name: repr(value) for name, value in asdict(config).items()}
    return settings | {f"architecture {number}": repr(each) for number, each in enumerate(architectures)}


def _write_state(path: Path, training: _Training, architectures: Sequence[Architecture], config: TrainConfig) -> None:
    state = {
        "description": _description(architectures, config),
        "step": training.step,
        "rows": training.rows,
        "stacks": [stack.state_dict() for stack in training.stacks],
        "optimisers": [optimiser.state_dict() for optimiser in training.optimisers],
        "normalisations": [normalisation.state() for normalisation in training.normalisations],
    }
    with replacing(path) as temporary:
        torch.save(state, temporary)


def _read_state(path: Path, architectures: Sequence[Architecture], config: TrainConfig) -> _Training:
    try:
        state = torch.load(path, weights_only=True, map_location="cpu")
        found = state["description"]
    except Exception as error:  # a broken file raises whatever the unpickler meets first
        raise UserError(
            f"{path} cannot be resumed from ({type(error).__name__})", remedy="delete that file to train from nothing"
        ) from error
    wanted = _description(architectures, config)
    if found != wanted:
        differing = ", ".join(
            f"{name}={found.get(name)}" for name in wanted | found if found.get(name) != wanted.get(name)
        )
        raise UserError(
            f"{path} is of a run with {differing}", remedy="resume with the same configuration or take another folder"
        )
    training = _new(architectures, config, [Normalisation(**each) for each in state["normalisations"]])
    training.step, training.rows = state["step"], state["rows"]
    for stack, optimiser, weights, moments in zip(
        training.stacks, training.optimisers, state["stacks"], state["optimisers"], strict=True
    ):
        stack.load_state_dict(weights)
        optimiser.load_state_dict(moments)
    return training
