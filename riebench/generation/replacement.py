"""Updates of blocks replaced by what a dictionary says of them, while images are generated."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from riebench.backbones.family import Site
from riebench.backbones.table import Backbone
from riebench.core.errors import UserError, did_you_mean
from riebench.generation.interventions import BRANCHES, window_steps
from riebench.generation.lens import Lens, Live
from riebench.generation.live import Reconstruct
from riebench.generation.replay import calling
from riebench.generation.sampler import Sampler
from sae_models.dictionary import Dictionary


@dataclass(frozen=True)
class Scope:
    """Says where updates are replaced: in which rows of a batch, and at which steps."""

    branch: str = "both"
    """Under guidance "cond", the rows that see the prompt, "uncond", those that see none, or "both", each row by its
    own replacement. Without guidance "cond" and "both" are the same."""
    window: str = "all"
    """As in `Intervention.window`; steps count from 0."""

    def steps(self, backbone: Backbone) -> tuple[int, ...]:
        """Returns the steps of the window. Raises `UserError` for a branch or a step that the backbone does not
        have."""
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
    site: str = "update",
) -> Iterator[None]:
    """While open, has `sampler.generate` make images with decode(encode(x)) in the place of the blocks' updates x.

    dictionaries: block -> its dictionary, on the sampler's device. recorded: what `recorded_outputs` holds after the
    same requests were generated undisturbed; steps before the first that is replaced are taken from it, where the batch
    is of the same size. Images do not depend on it. site: what is replaced of the blocks, update or stream. Raises
    `UserError` as `Scope.steps` does.
    """
    steps = scope.steps(sampler.backbone)
    hooks = {
        Site(block, site): (_replacing(sampler, dictionary, scope, steps),)
        for block, dictionary in dictionaries.items()
    }
    with Lens(sampler.blocks, live=hooks) as lens, _following(sampler, lens, recorded[: steps[0]]):
        yield


@contextmanager
def recorded_outputs(denoiser: nn.Module) -> Iterator[list[Tensor]]:
    """Yields a list which, while open, gains the denoiser's output of each call, on the CPU."""
    outputs: list[Tensor] = []
    hook = denoiser.register_forward_hook(lambda _denoiser, _args, output: outputs.append(output[0].cpu()))
    try:
        yield outputs
    finally:
        hook.remove()


def _replacing(sampler: Sampler, dictionary: Dictionary, scope: Scope, steps: Sequence[int]) -> Live:
    """Returns a function as `Lens` takes it, of what takes a running value to its replacement."""
    reconstruct = Reconstruct(dictionary)
    branches = sampler.backbone.branches

    def added(value_bnc: Tensor, step: int) -> Tensor:
        change_bnc = torch.zeros_like(value_bnc)
        each = len(value_bnc) // len(branches)
        for i, branch in enumerate(branches):
            if step in steps and (scope.branch in (branch, "both") or len(branches) == 1):
                rows = slice(i * each, (i + 1) * each)
                change_bnc[rows] = reconstruct.delta(value_bnc[rows], step)
        return change_bnc

    return added


@contextmanager
def _following(sampler: Sampler, lens: Lens, recorded: Sequence[Tensor]) -> Iterator[None]:
    """While open, keeps the lens at the step whose timestep the denoiser is called with, and gives the recorded outputs
    at the first steps."""
    own = sampler.denoiser.forward

    def forward(sample: Tensor, timestep: Tensor, *args, **kwargs):
        lens.step = int((sampler.pipeline.scheduler.timesteps == timestep).nonzero()[0])
        if lens.step < len(recorded) and len(recorded[lens.step]) == len(sample):
            return (recorded[lens.step].to(sample),)
        return own(sample, timestep, *args, **kwargs)

    with calling(sampler.denoiser, forward):
        yield
