"""`riebench tinyworld evaluate`: the shipped models against the renderer's truth."""

from __future__ import annotations

import numpy as np
import torch

from riebench.backbones import BACKBONES
from riebench.errors import UserError
from riebench.sampling import Request, Sampler, choose_device, load_sampler
from riebench.tinyworld import clip, grounder, oracle
from riebench.tinyworld.captions import caption
from riebench.tinyworld.models import LATENT_SIZE
from riebench.tinyworld.noise import layout_from_noise
from riebench.tinyworld.scenes import ATTRIBUTES, PLACES, SIZES, Scene, sample_attributes

FIRST_SEED = 10_000  # of the generations judged here; no run of the benchmark uses such seeds


def evaluate_world(count: int = 512, device: str = "auto") -> dict[str, dict]:
    """Every figure of the shipped models, as plain numbers; `count` pictures, a multiple of 64, behind each."""
    if count < 64 or count % 64:
        raise UserError(f"count {count} is not a multiple of 64", remedy="use 512, for instance")
    where = choose_device(device)
    judge = oracle.load_oracle(where)
    sampler = load_sampler(BACKBONES.get("tinyworld-turbo@1"), where)
    return {
        "oracle": oracle.evaluate_oracle(judge, 1, count),
        "grounder": grounder.evaluate_grounder(grounder.load_grounder(where), 1, count),
        "clip": clip.evaluate_clip(clip.load_clip(where), 1, count),
        "turbo, held-out prompts": judge_generations(sampler, judge, count, "held_out"),
        "turbo, unseen pairs": judge_generations(sampler, judge, count, "unseen_pairs"),
    }


def judge_generations(sampler: Sampler, judge: oracle.Oracle, count: int, split: str) -> dict[str, float]:
    """Share of generations in which the oracle reads the prompt's value, per attribute and in the mean; the share
    that lie where their noise says; and how often each layout occurs."""
    attributes = sample_attributes(np.random.default_rng(2), count, split)
    requests = [Request(caption(Scene.from_indices(row)), FIRST_SEED + i) for i, row in enumerate(attributes)]
    images = torch.stack([sample.image for sample in sampler.generate(requests)]).to(sampler.device)
    right = judge.attributes(images).cpu().numpy() == attributes
    found = judge.layouts(images).cpu()
    law = layout_from_noise(torch.cat([starting_noise(request.seed) for request in requests]))
    figures = {name: float(right[:, i].mean()) for i, name in enumerate(ATTRIBUTES)}
    figures["mean"] = float(right.mean())
    figures["layout as the noise says"] = float((found == law).all(dim=1).float().mean())
    for column, names in enumerate((PLACES, SIZES)):
        figures |= {f"share {name}": float((found[:, column] == i).float().mean()) for i, name in enumerate(names)}
    return figures


def starting_noise(seed: int) -> torch.Tensor:
    """The unit noise `[1, 4, 32, 32]` that the sampler starts a seed from."""
    return torch.randn(1, 4, LATENT_SIZE, LATENT_SIZE, generator=torch.Generator("cpu").manual_seed(seed))


def format_evaluation(found: dict[str, dict]) -> str:
    lines = []
    for title, figures in found.items():
        lines.append(title)
        lines += [f"  {name:<28}{value:.3f}" for name, value in figures.items()]
    return "\n".join(lines)
