"""The updates of blocks replaced by what a dictionary says of them, while images are generated."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from riebench.backbones.table import Backbone
from riebench.core.errors import UserError, did_you_mean
from riebench.generation.interventions import BRANCHES, window_steps
from riebench.generation.lens import Lens, Site
from riebench.generation.live import Reconstruct
from riebench.generation.replay import calling
from riebench.generation.sampler import Sampler
from sae_models.dictionary import Dictionary


@dataclass(frozen=True)
class Scope:
    """Where updates are replaced: in which rows of the U-Net's batch, and at which steps."""

    branch: str = "both"
    """Under guidance "cond", the rows that see the prompt, "uncond", those that see none, or "both", each row by its
    own replacement. Without guidance "cond" and "both" are the same."""
    window: str = "all"
    """As in `Intervention.window`; steps count from 0."""

    def steps(self, backbone: Backbone) -> tuple[int, ...]:
        """The steps of the window. Raises `UserError` for a branch or a step that the backbone does not have."""
        if self.branch not in BRANCHES:
            raise UserError(
                f"updates cannot be replaced in branch {self.branch!r}{did_you_mean(self.branch, BRANCHES)}",
                remedy=f"use one of {', '.join(BRANCHES)}",
            )
        if self.branch == "uncond" and not backbone.guided:
            raise UserError(
                f"{backbone.name} is sampled without guidance and has no unconditional row",
                remedy="use branch 'cond' or 'both'",
            )
        return window_steps(self.window, backbone.steps)


@contextmanager
def replaced(
    sampler: Sampler,
    dictionaries: Mapping[str, Dictionary],
    scope: Scope,
    recorded: Sequence[Tensor] = (),
) -> Iterator[None]:
    """While open, `sampler.generate` makes images with decode(encode(x)) in the place of the blocks' updates x.

    dictionaries: block -> its dictionary, on the sampler's device. recorded: what `recorded_outputs` holds after the
    same requests were generated undisturbed; steps before the first that is replaced are taken from it, where the batch
    is of the same size. Images do not depend on it. Raises `UserError` as `Scope.steps` does.
    """
    steps = scope.steps(sampler.backbone)
    hooks = {
        Site(block): (_replacing(sampler, dictionary, scope, steps),) for block, dictionary in dictionaries.items()
    }
    with Lens(sampler.unet, rewrites=hooks) as lens, _following(sampler, lens, recorded[: steps[0]]):
        yield


@contextmanager
def recorded_outputs(unet: nn.Module) -> Iterator[list[Tensor]]:
    """While open, a list of the U-Net's outputs `[rows, 4, h, w]`, on the CPU: one for each call so far."""
    outputs: list[Tensor] = []
    hook = unet.register_forward_hook(lambda _unet, _args, output: outputs.append(output[0].cpu()))
    try:
        yield outputs
    finally:
        hook.remove()


def _replacing(sampler: Sampler, dictionary: Dictionary, scope: Scope, steps: Sequence[int]) -> Callable:
    """A function as `Lens` takes them: (running value `[rows, C, h, w]`, step) -> what takes it to its replacement."""
    reconstruct = Reconstruct(dictionary)

    def added(value_bchw: Tensor, step: int) -> Tensor:
        half = len(value_bchw) // 2  # under guidance the rows are [uncond, cond]
        halves = {"uncond": slice(None, half), "cond": slice(half, None)} if sampler.backbone.guided else {}
        rows = halves.get(scope.branch, slice(None))
        change_bchw = torch.zeros_like(value_bchw)
        if step in steps:
            change_bchw[rows] = reconstruct.delta(value_bchw[rows], step)
        return change_bchw

    return added


@contextmanager
def _following(sampler: Sampler, lens: Lens, recorded: Sequence[Tensor]) -> Iterator[None]:
    """While open, the lens is at the step whose timestep the U-Net is called with, and the U-Net's outputs at the first
    steps are those recorded."""
    own = sampler.unet.forward

    def forward(sample: Tensor, timestep: Tensor, *args, **kwargs):
        lens.step = int((sampler.pipeline.scheduler.timesteps == timestep).nonzero()[0])
        if lens.step < len(recorded) and len(recorded[lens.step]) == len(sample):
            return (recorded[lens.step].to(sample),)
        return own(sample, timestep, *args, **kwargs)

    with calling(sampler.unet, forward):
        yield
