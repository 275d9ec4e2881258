"""Training of tinyworld's grounder on rendered scenes, and how well it finds what they show."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from riebench.tinyworld.grounder import CLASSES, NOUNS, Grounder
from riebench.tinyworld.render import Rendering
from riebench.tinyworld_build.augment import degrade, training_scenes, unit_images
from riebench.tinyworld_build.batches import random_scenes
from riebench.tinyworld_build.fit import fit

STEPS, BATCH = 1000, 48
_CLASS_WEIGHTS = (1.0, 1.0, 3.0, 3.0, 3.0)


def train_grounder(folder: Path, device: torch.device, *, seed: int = 0, steps: int = STEPS) -> Grounder:
    """Trains by weighted cross-entropy per pixel, on degraded renderings of scenes that are not held out."""
    torch.manual_seed(seed)
    weights = torch.tensor(_CLASS_WEIGHTS, device=device)

    def loss(model: Grounder, step: int) -> torch.Tensor:
        attributes, _, rendering = training_scenes(seed, step, BATCH)
        generator = torch.Generator("cpu").manual_seed(seed * 1_000_003 + step)
        logits = model(degrade(unit_images(rendering).to(device), generator))
        return F.cross_entropy(logits, _true_classes(attributes, rendering).to(device), weights)

    return fit("grounder", Grounder().to(device), loss, steps=steps, folder=folder, lr=3e-3, warmup=100, ema=0.99)


def evaluate_grounder(grounder: Grounder, seed: int, count: int, *, split: str = "held_out") -> dict[str, float]:
    """Returns mean intersection over union per phrase, on those of `count` rendered scenes that show what it names.

    "mean" is over the phrases. "absent" is the share of accessory phrases that rightly get an empty mask.
    """
    attributes, _, rendering = random_scenes(seed, 0, count, split)
    images = unit_images(rendering).to(next(grounder.parameters()).device)
    truth = _true_classes(attributes, rendering)
    scores, empty = {}, []
    for phrase in ("object", "foreground", *CLASSES[2:]):
        found = grounder.masks(images, [phrase] * count).cpu()
        wanted = torch.isin(truth, torch.tensor([CLASSES.index(name) for name in NOUNS[phrase]]))
        shown = wanted.any(dim=(1, 2))
        overlap = (found & wanted).sum(dim=(1, 2)) / (found | wanted).sum(dim=(1, 2))
        scores[phrase] = overlap[shown].double().mean().item()
        empty.append(~found.any(dim=(1, 2))[~shown])
    return scores | {"mean": sum(scores.values()) / len(scores), "absent": torch.cat(empty).double().mean().item()}


def _true_classes(attributes: np.ndarray, rendering: Rendering) -> torch.Tensor:
    """Returns the index into `CLASSES` of every pixel, int64 `[b, 64, 64]`."""
    accessory = torch.from_numpy(attributes[:, 5] + 1)[:, None, None]
    item, body = torch.from_numpy(rendering.accessory_bhw), torch.from_numpy(rendering.object_bhw)
    return torch.where(item, accessory, body.long())
