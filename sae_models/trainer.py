"""Many sparse autoencoders are trained here on one stream of rows. A training resumes exactly; its log is files."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from riebench.core.errors import UserError
from riebench.core.progress import Progress
from sae_models.architectures import Architecture
from sae_models.normalisation import Normalisation, geometric_median
from sae_models.stack import Losses
from sae_models.tensors import SAE
from sae_models.trackers import Tracker, open_trackers
from sae_models.training_config import TrainConfig
from sae_models.training_log import TrainingLog
from sae_models.training_state import STATE_FILE, Training, description, read_state, write_state
from sae_models.watch import Watch, not_finite

CALIBRATION_ROWS = 32_768  # the geometric median and the normalisation are estimated on up to this many


def train(
    batches: Iterator[Tensor],
    architectures: Sequence[Architecture],
    config: TrainConfig,
    *,
    folder: Path | None = None,
    checkpoint_every: int = 1_000,
    trackers: Sequence[str | Tracker] = (),
) -> list[SAE]:
    """Trains every architecture on every batch, on the device of the batches, and returns them in the order given.

    batches: raw rows `[n, d]`, or `[blocks, n, d]` with an architecture's `block` among them. Those that differ by the
    seed alone are stacked: they go through every product together.

    With a `folder`, `training.pt` holds the state, written every `checkpoint_every` steps and at the end, and training
    goes on from what is found there, bit for bit as if it had never stopped if the batches are the same: `batches` is
    asked to `seek(step)` where it can, else the batches used are taken from it and left. `log.jsonl` gains a line each
    report: step, rows, lr, seconds since this run began, and of each autoencoder loss, ev (explained variance), l0 and
    dead (share of the features). `curves.svg` is a picture of it, drawn with each state.

    trackers: "wandb" and "tensorboard", which need a folder, or functions of a step and its numbers by name, as "ev/0"
    of the first autoencoder; called each report. One that fails is said in a line and left out from then on.

    Rows are normalised, b_dec starts as their geometric median, and both are folded into what is returned, which takes
    raw rows. What is not finite any more, rows, losses or weights, stops it at the next report or state with the step
    where that began, and is not saved. Raises `UserError` for that, for rows of a wrong shape or all the same, batches
    that end early, a state file that is broken or of another configuration, a tracker that is unknown or not installed,
    and `compile` where that cannot work; what was saved stays.
    """
    if not architectures:
        raise UserError("there is no architecture to train", remedy="give at least one")
    folder = None if folder is None else Path(folder)
    path = None if folder is None else folder / STATE_FILE
    training = read_state(path, architectures, config) if path is not None and path.exists() else None
    done = 0 if training is None else training.step
    with (
        open_trackers(trackers, folder, done, description(architectures, config)) as track,
        Progress(_label(architectures), total=config.steps, done=done) as progress,
    ):
        log = TrainingLog(folder, architectures, track, done)
        if training is None:
            training, batches = _start(batches, architectures, config)
        else:
            batches = _from_step(batches, training.step)
        watch, kept = None, _kept(path, done)
        while training.step < config.steps:
            step = training.step
            batch = _batch(batches, step, architectures)
            if watch is None:
                _settle(training, batch.device, config)
                watch = Watch(config, batch.device)
            losses = _advance(training, batch, config)
            watch.see(step, batch, losses)
            last = training.step == config.steps
            report = last or training.step % config.report_every == 0
            saved_to = path if last or training.step % checkpoint_every == 0 else None
            if report or saved_to:
                watch.check(training, losses, kept)
            if report:
                _revive(training, losses, config)
                found = training.in_order([each.statistics_s4.tolist() for each in losses])
                log.add(training.step, training.rows, config.lr_at(step), found)
                progress.update(training.step, _note(found))
            if saved_to:
                write_state(saved_to, training, architectures, config)
                kept = _kept(saved_to, training.step)
                log.draw()
    return training.in_order(
        [stack.exported(training.normalisations[stack.architecture.block]) for stack in training.stacks]
    )


def _start(
    batches: Iterator[Tensor], architectures: Sequence[Architecture], config: TrainConfig
) -> tuple[Training, Iterator[Tensor]]:
    """Calibrates on the first batches, which are trained on all the same."""
    first: list[Tensor] = []
    while len(first) < config.steps and sum(batch.shape[1] for batch in first) < CALIBRATION_ROWS:
        first.append(_batch(batches, len(first), architectures))
        if not torch.isfinite(first[-1]).all():
            raise not_finite(len(first) - 1)
    rows_bnd = torch.cat(first, dim=1)[:, :CALIBRATION_ROWS]
    normalisations = [Normalisation.of(rows_nd, config.normalisation) for rows_nd in rows_bnd]
    training = Training.of(architectures, config, normalisations)
    training.to(rows_bnd.device)
    for block, normalisation in enumerate(normalisations):
        rows_nd = normalisation.apply(rows_bnd[block])
        median_d = geometric_median(rows_nd).float()
        for stack in training.stacks:
            if stack.architecture.block == block:
                stack.start(rows_nd, median_d, stack.architecture.sparsity.k_at(0, config.steps))
    return training, itertools.chain(first, batches)


def _settle(training: Training, device: torch.device, config: TrainConfig) -> None:
    """Puts a training on the device of the batches, compiled where that is asked for."""
    training.to(device)
    if config.compile:
        for stack in training.stacks:
            stack.compile_parts()


def _batch(batches: Iterator[Tensor], step: int, architectures: Sequence[Architecture]) -> Tensor:
    """Returns the next batch, `[blocks, n, d]` in float32."""
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


def _kept(path: Path | None, step: int) -> str:
    """Returns what is said of the state that was saved last; "" where none was."""
    return f"; {path} holds step {step}, from which the same call goes on" if path is not None and step else ""


def _advance(training: Training, batch: Tensor, config: TrainConfig) -> list[Losses]:
    """Makes one optimiser step of all, in place."""
    used = {stack.architecture.block for stack in training.stacks}
    x_nd = {block: training.normalisations[block].apply(batch[block]) for block in used}
    found = []
    for stack, optimiser in zip(training.stacks, training.optimisers, strict=True):
        for group in optimiser.param_groups:
            group["lr"] = config.lr_at(training.step)
        architecture = stack.architecture
        losses = stack.losses(x_nd[architecture.block], architecture.sparsity.k_at(training.step, config.steps))
        optimiser.zero_grad(set_to_none=True)
        losses.loss_s.sum().backward()
        stack.project_gradient()
        optimiser.step()
        stack.renormalise()
        found.append(dataclasses.replace(losses, loss_s=losses.loss_s.detach()))  # lets go of the graph
    training.step += 1
    training.rows += batch.shape[1]
    return found


def _revive(training: Training, losses: list[Losses], config: TrainConfig) -> None:
    """Lists the dead features, and restarts them where that is asked for and the learning rate does not fall yet."""
    for stack, optimiser, each in zip(training.stacks, training.optimisers, losses, strict=True):
        stack.list_dead()
        if training.step <= (1 - config.decay) * config.steps:
            stack.restart(each.residual_snd, optimiser, training.step)


def _label(architectures: Sequence[Architecture]) -> str:
    if len(architectures) > 1:
        return f"training {len(architectures)} SAEs"
    return f"training SAE {architectures[0].width} -> {architectures[0].num_features}, {architectures[0].sparsity}"


def _note(found: list[list[float]]) -> str:
    """Returns the mean over autoencoders of what a log's line has of each."""
    _, explained, l0, dead = (sum(column) / len(found) for column in zip(*found, strict=True))
    return f"{'mean ' if len(found) > 1 else ''}EV {explained:.3f}, L0 {l0:.1f}, dead {dead:.1%}"
