"""tinyworld-flux against the renderer's truth, by its own pipeline alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import FluxPipeline
from torch import Tensor

from riebench.core.errors import UserError
from riebench.core.progress import Progress
from riebench.tinyworld.captions import CONTEXT_LENGTH, captions
from riebench.tinyworld.grounder import load_grounder
from riebench.tinyworld.noise import FLUX_NOISE
from riebench.tinyworld.oracle import load_oracle
from riebench.tinyworld.render import SIZE
from riebench.tinyworld.scenes import sample_attributes
from riebench.tinyworld_build.evaluate import BATCH, FIRST_SEED, SPLITS, judge_generations

STEPS = (1, 4)


def evaluate_flux(folder: Path, count: int = 256) -> dict[str, dict[str, float]]:
    """Returns what `judge_generations` says of the pipeline in `folder` on the CPU, by number of steps and split, each
    figure from `count` pictures. Raises `UserError` where there is no pipeline."""
    if not (folder / "model_index.json").is_file():
        raise UserError(
            f"{folder} has no pipeline", remedy="name the folder flux of `riebench tinyworld train --world flux`"
        )
    return evaluate_pipeline(FluxPipeline.from_pretrained(folder, low_cpu_mem_usage=False), count)


def evaluate_pipeline(pipeline: FluxPipeline, count: int) -> dict[str, dict[str, float]]:
    """Returns the same of a pipeline of tinyworld-flux: title -> figures."""
    judge, finder = load_oracle(), load_grounder()
    found = {}
    for steps in STEPS:
        for title, split in SPLITS.items():
            attributes = sample_attributes(np.random.default_rng(2), count, split)
            seeds = [FIRST_SEED + i for i in range(count)]
            images = generate(pipeline, captions(attributes), seeds, steps)
            figures = judge_generations(judge, finder, attributes, images, seeds, FLUX_NOISE)
            found[f"tinyworld-flux@{steps}, {title}"] = figures
    return found


def generate(pipeline: FluxPipeline, prompts: list[str], seeds: list[int], steps: int) -> Tensor:
    """Returns images `[n, 3, 64, 64]` in [0, 1] of prompts, each from the noise of its seed."""
    pipeline.set_progress_bar_config(disable=True)
    images: list[Tensor] = []
    with Progress(f"generating with tinyworld-flux@{steps}", total=len(prompts), unit="image") as progress:
        for start in range(0, len(prompts), BATCH):
            chunk = slice(start, start + BATCH)
            made = pipeline(
                prompts[chunk],
                height=SIZE,
                width=SIZE,
                num_inference_steps=steps,
                guidance_scale=0.0,
                max_sequence_length=CONTEXT_LENGTH,
                generator=[torch.Generator("cpu").manual_seed(seed) for seed in seeds[chunk]],
                output_type="pt",
            )
            images += list(made.images)
            progress.update(len(images))
    return torch.stack(images)
