"""`riebench tinyworld evaluate`: the shipped models against the renderer's truth."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from riebench.backbones.loading import choose_device
from riebench.backbones.table import BACKBONES
from riebench.core.errors import UserError
from riebench.core.progress import Progress
from riebench.dictionaries.generalisation import FEATURE_COSINE, generalise
from riebench.generation.sampler import Request, Sampler, load_sampler
from riebench.tinyworld.captions import captions
from riebench.tinyworld.clip import load_clip
from riebench.tinyworld.grounder import Grounder, load_grounder
from riebench.tinyworld.noise import UNET_NOISE, NoiseLaw, layout_from_noise, starting_noise
from riebench.tinyworld.oracle import Oracle, load_oracle
from riebench.tinyworld.render import render
from riebench.tinyworld.scenes import ATTRIBUTES, PLACES, SIZES, sample_attributes
from riebench.tinyworld_build.train_clip import evaluate_clip
from riebench.tinyworld_build.train_grounder import evaluate_grounder
from riebench.tinyworld_build.train_oracle import evaluate_oracle
from sae_models import index

GENERATORS = ("tinyworld-turbo@1", "tinyworld-turbo@4", "tinyworld-base@25")
CONTROLS = ("tinyworld-permuted@1", "tinyworld-everywhere@1")
#: Title -> split: prompts held out of training, and pairs of shape and colour that no training scene showed.
SPLITS = {"held-out prompts": "held_out", "unseen pairs": "unseen_pairs"}
CARRIED_PROMPTS = 32
SHARE_WITH_GUIDANCE = 4  # a model of 25 guided steps is judged on a quarter of the pictures
FIRST_SEED = 10_000  # of the generations judged here; no run of the benchmark uses such seeds
BATCH = 32


def evaluate_world(count: int = 512, device: str = "auto") -> dict[str, dict]:
    """Returns every figure of the shipped models, as plain numbers; `count` pictures, a multiple of 64, behind each,
    and a quarter of them, but at least 64, for tinyworld-base. The dictionaries' own figures come from their index."""
    if count < 64 or count % 64:
        raise UserError(f"count {count} is not a multiple of 64", remedy="use 512, for instance")
    where = choose_device(device)
    judge, finder = load_oracle(where), load_grounder(where)
    found = {
        "oracle": evaluate_oracle(judge, 1, count),
        "grounder": evaluate_grounder(finder, 1, count),
        "clip": evaluate_clip(load_clip(where), 1, count),
    }
    for name in (*GENERATORS, *CONTROLS):
        backbone = BACKBONES.get(name)
        pictures = max(64, count // SHARE_WITH_GUIDANCE) if backbone.guided else count
        sampler = load_sampler(backbone, where, BATCH)
        for title, split in SPLITS.items():
            attributes, images, seeds = generate(sampler, pictures, split)
            found[f"{name}, {title}"] = judge_generations(judge, finder, attributes, images, seeds)
    return found | _dictionaries(device)


def _dictionaries(device: str) -> dict[str, dict]:
    """Returns what the index says of every SAE, and how those that runs use carry over (all: `riebench evaluate`)."""
    trained_on = GENERATORS[0]
    figures = ("l0", "explained_variance_pooled", "explained_variance_mean", "dead_share")
    found = {
        f"SAE {entry.block} {entry.name}": {name: entry.evaluation[name] for name in figures}
        for entry in index.entries()
        if entry.backbone == trained_on
    }
    backbones = [BACKBONES.get(name) for name in GENERATORS]
    carried = generalise(trained_on, backbones, CARRIED_PROMPTS, name=index.DEFAULT_NAME, device=device)
    for row in carried["dictionaries"]:
        for backbone, branches in row["on"].items():
            for branch, of_steps in branches.items():
                title = f"SAE {row['block']} {row['name']} on {backbone}, {branch}"
                found[title] = {
                    f"{name}, step {step}": value
                    for name in ("explained_variance_pooled", FEATURE_COSINE)
                    for step, value in enumerate(of_steps[name], start=1)
                }
    return found


def generate(sampler: Sampler, count: int, split: str) -> tuple[np.ndarray, Tensor, list[int]]:
    """Returns (attributes `[n, 8]`, images `[n, 3, 64, 64]`, seeds) of `count` prompts of a split, each from its own
    noise."""
    attributes = sample_attributes(np.random.default_rng(2), count, split)
    seeds = [FIRST_SEED + i for i in range(count)]
    requests = [Request(prompt, seed) for prompt, seed in zip(captions(attributes), seeds, strict=True)]
    images: list[Tensor] = []
    with Progress(f"generating with {sampler.backbone.name}", total=count, unit="image") as progress:
        for start in range(0, count, sampler.batch_size):
            images += [sample.image for sample in sampler.generate(requests[start : start + sampler.batch_size])]
            progress.update(len(images))
    return attributes, torch.stack(images).to(sampler.device), seeds


def judge_generations(
    judge: Oracle, finder: Grounder, attributes: np.ndarray, images: Tensor, seeds: list[int],
    law: NoiseLaw = UNET_NOISE,
) -> dict[str, float]:  # fmt: skip
    """Returns what generations `[n, 3, 64, 64]` of the scenes' captions are worth. law: of the seeds' noise.

    Per attribute and in the mean, the share in which the oracle reads the prompt's value; the share that lie where
    their noise says; how often each layout occurs (the renderer: 1/3 and 1/2 each); and the grounder's mean
    intersection over union with the oracle's own localisation, which is the mask that the renderer draws for the
    attributes and the layout that the oracle reads in the picture.
    """
    read, layouts = judge.attributes(images).cpu().numpy(), judge.layouts(images).cpu()
    right = read == attributes
    said = layout_from_noise(torch.cat([starting_noise(seed, law) for seed in seeds]), law)
    figures = {name: float(right[:, i].mean()) for i, name in enumerate(ATTRIBUTES)}
    figures["mean"] = float(right.mean())
    figures["layout as the noise says"] = float((layouts == said).all(dim=1).float().mean())
    for column, names in enumerate((PLACES, SIZES)):
        figures |= {f"share {name}": float((layouts[:, column] == i).float().mean()) for i, name in enumerate(names)}
    drawn = torch.from_numpy(~render(read, layouts.numpy()).background_bhw)
    masks = finder.masks(images, ["foreground"] * len(images)).cpu()
    overlap = (masks & drawn).sum(dim=(1, 2)) / (masks | drawn).sum(dim=(1, 2))
    return figures | {"grounder against oracle, IoU": overlap.double().mean().item()}


def format_evaluation(found: dict[str, dict]) -> str:
    """Returns what `evaluate_world` found as text, a figure a line under the title of its model."""
    lines = []
    for title, figures in found.items():
        lines.append(title)
        lines += [f"  {name:<36}{value:.3f}" for name, value in figures.items()]
    return "\n".join(lines)
