"""What a pipeline of others has to be like, so that a run of it is what it seems: one call of the denoiser a step, and
pictures of whole cells."""

from __future__ import annotations

import copy
import json
import math
from importlib import import_module
from pathlib import Path
from typing import Any

from riebench.backbones.table import Backbone
from riebench.core.errors import UserError

CALLED = ("scale_model_input", "init_noise_sigma", "set_timesteps", "step")  # of a scheduler, by the pipelines
EIGHT = 8  # pixels: the pipelines of diffusers take multiples of it alone
PLAIN = "a scheduler that calls it once, as EulerDiscreteScheduler or DPMSolverMultistepScheduler"


def refuse_schedulers_of(backbone: Backbone, folder: Path) -> None:
    """Raises `UserError` as `refuse_scheduler` does, for the schedulers that the files of a pipeline name: its index,
    and the configuration beside it, which may have been put there later. What cannot be read passes: the loader says
    so."""
    try:
        settings = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
        named = [json.loads((folder / "model_index.json").read_text())["scheduler"][1], settings.get("_class_name")]
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return
    for name in dict.fromkeys(named):
        kind = getattr(import_module("diffusers"), name, None) if isinstance(name, str) else None
        if kind is not None:
            try:
                scheduler = kind.from_config(settings)
            except Exception:  # of settings of another class; the loader reads the index's
                continue
            refuse_scheduler(backbone, scheduler)


def refuse_scheduler(backbone: Backbone, scheduler: Any) -> None:
    """Raises `UserError` where a scheduler does not have one timestep for each of the backbone's steps: one of second
    order calls the denoiser more than once in a step. Its state stays as it is."""
    kind, steps = type(scheduler).__name__, backbone.steps
    lacks = [name for name in CALLED if not hasattr(scheduler, name)]
    if lacks:
        raise UserError(
            f"{backbone.name} has a {kind}, which is of another kind of model: it has no {lacks[0]}",
            remedy=f"save the pipeline with {PLAIN}",
        )
    tried = copy.deepcopy(scheduler)
    try:
        tried.set_timesteps(steps)
        calls = len(tried.timesteps)
    except Exception as error:  # whatever a scheduler says of a number of steps that it cannot make
        raise UserError(
            f"{backbone.name} has a {kind}, which cannot make {steps} steps: {error}",
            remedy=f"save the pipeline with {PLAIN}, or give other `steps`",
        ) from error
    if calls != steps or getattr(tried, "order", 1) != 1:
        said = f"{calls} times in {steps} steps" if calls > steps else "more than once a step"
        raise UserError(
            f"{backbone.name} has a {kind}, which calls the denoiser {said}",
            remedy=f"save the pipeline with {PLAIN}: a step is one call here",
        )


def refuse_size(backbone: Backbone, pipeline: Any) -> None:
    """Raises `UserError` where the pictures of a backbone are not made of whole cells of the pipeline's latents, or its
    size is not known."""
    denoiser = getattr(pipeline, backbone.family.denoiser)
    cells, factor = denoiser.config.sample_size, pipeline.vae_scale_factor
    whole = math.lcm(EIGHT, factor)
    for name, given in (("height", backbone.height), ("width", backbone.width)):
        if not given and not isinstance(cells, int):
            raise UserError(
                f"the {name} of {backbone.name}'s pictures is not known: its denoiser's sample_size is {cells!r}",
                remedy=f"give `{name}` in pixels, a multiple of {whole}",
            )
        pixels = given or cells * factor
        if pixels < whole or pixels % whole:
            near = max(whole, round(pixels / whole) * whole)
            raise UserError(
                f"{backbone.name} makes pictures of {name} {pixels} px, and its cells are of {factor} px",
                remedy=f"give a {name} that is a multiple of {whole}, as {near}",
            )
