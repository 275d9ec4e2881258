"""One seeded, resumable training loop, shared by every small model of tinyworld."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from riebench.core.errors import UserError
from riebench.core.files import replacing
from riebench.core.progress import Progress


def fit(
    name: str,
    model: nn.Module,
    loss: Callable[[nn.Module, int], torch.Tensor],
    *,
    steps: int,
    folder: Path,
    lr: float = 2e-3,
    warmup: int = 200,
    weight_decay: float = 0.01,
    ema: float = 0.0,
    decay: float = 1.0,
    before_step: Callable[[nn.Module], None] = lambda model: None,
    checkpoint_every: int = 250,
) -> nn.Module:
    """Trains `model` in place with AdamW, and returns it (its moving average where ema > 0).

    The learning rate rises to `lr` and falls as a cosine over the last share `decay` of the steps. before_step is
    called with the model and its gradients before each of the optimiser's steps. loss(model, step) draws its own batch
    from `step`, so the data position is the step and a resumed run sees the same batches. State goes to
    `folder/<name>.pt` every `checkpoint_every` steps; a run that finds it goes on there. Raises `UserError` where loss
    or weights are not finite; the state before stays.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.pt"
    optimiser = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.99), weight_decay=weight_decay)
    average = copy.deepcopy(model).requires_grad_(False) if ema else None
    start = 0
    if path.exists():
        start = _resume(path, model, average, optimiser)
    model.train()
    with Progress(f"training {name}", total=steps, done=start) as progress:
        for step in range(start, steps):
            for group in optimiser.param_groups:
                group["lr"] = lr * _schedule(step, steps, warmup, decay)
            value = loss(model, step)
            optimiser.zero_grad(set_to_none=True)
            value.backward()
            before_step(model)
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            if average is not None:
                _update_average(average, model, min(ema, (step + 1) / (step + 10)))
            report = step % 25 == 24 or step == steps - 1
            save = (step + 1) % checkpoint_every == 0 or step == steps - 1
            if report or save:
                _refuse_not_finite(name, model, value, step)
            if report:
                progress.update(step + 1, f"loss {value.item():.4f}")
            if save:
                _save(path, step + 1, model, average, optimiser)
    return (average if average is not None else model).eval()


def _refuse_not_finite(name: str, model: nn.Module, value: torch.Tensor, step: int) -> None:
    """Raises `UserError` where loss or weights are no numbers any more, so that no such state is saved."""
    if not math.isfinite(value.item()):
        raise UserError(f"training {name}: the loss is {value.item()} at step {step}", remedy="lower lr")
    if not all(bool(torch.isfinite(parameter).all()) for parameter in model.parameters()):
        raise UserError(f"training {name}: weights are NaN or infinite after step {step}", remedy="lower lr")


def _schedule(step: int, steps: int, warmup: int, decay: float) -> float:
    into_decay = max(0.0, 1 - (steps - step) / (decay * steps))
    return min(1.0, (step + 1) / warmup) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * into_decay)))


@torch.no_grad()
def _update_average(average: nn.Module, model: nn.Module, decay: float) -> None:
    for old, new in zip(average.state_dict().values(), model.state_dict().values(), strict=True):
        if old.is_floating_point():
            old.lerp_(new, 1 - decay)
        else:
            old.copy_(new)


def _save(path: Path, step: int, model, average, optimiser) -> None:
    state = {"step": step, "model": model.state_dict(), "optimiser": optimiser.state_dict()}
    if average is not None:
        state["average"] = average.state_dict()
    with replacing(path) as temporary:
        torch.save(state, temporary)


def _resume(path: Path, model, average, optimiser) -> int:
    try:
        state = torch.load(path, weights_only=True, map_location="cpu")
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        if average is not None:
            average.load_state_dict(state["average"])
    except Exception as error:
        raise UserError(
            f"{path} cannot be resumed from ({type(error).__name__})", remedy="delete that file to train from nothing"
        ) from error
    return int(state["step"])
