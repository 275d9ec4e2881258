"""Training of tinyworld's oracle on rendered scenes, and how well it reads them."""

from __future__ import annotations

from pathlib import Path

import torch
from torch.nn import functional as F

from riebench.tinyworld.oracle import NUM_VALUES, Oracle
from riebench.tinyworld.scenes import ATTRIBUTES
from riebench.tinyworld_build.augment import degrade, training_scenes, unit_images
from riebench.tinyworld_build.batches import random_scenes
from riebench.tinyworld_build.fit import fit

STEPS, BATCH = 2200, 64


def train_oracle(folder: Path, device: torch.device, *, seed: int = 0, steps: int = STEPS) -> Oracle:
    """Trains by cross-entropy over all heads, on degraded renderings of scenes that are not held out."""
    torch.manual_seed(seed)

    def loss(model: Oracle, step: int) -> torch.Tensor:
        attributes, layouts, rendering = training_scenes(seed, step, BATCH)
        generator = torch.Generator("cpu").manual_seed(seed * 1_000_003 + step)
        logits = model(degrade(unit_images(rendering).to(device), generator))
        targets = torch.cat([torch.from_numpy(attributes), torch.from_numpy(layouts)], dim=1).to(device)
        return torch.stack([F.cross_entropy(logits[name], targets[:, i]) for i, name in enumerate(NUM_VALUES)]).mean()

    return fit("oracle", Oracle().to(device), loss, steps=steps, folder=folder, lr=3e-3, warmup=100, ema=0.99)


def evaluate_oracle(oracle: Oracle, seed: int, count: int, *, split: str = "held_out") -> dict[str, float]:
    """Returns the accuracy per attribute, and of "place" and "size", on `count` rendered scenes of a split.

    "mean" is over the eight attributes. "calibration_error" is the expected calibration error in the mean over them.
    """
    attributes, layouts, rendering = random_scenes(seed, 0, count, split)
    images = unit_images(rendering).to(next(oracle.parameters()).device)
    truth = torch.cat([torch.from_numpy(attributes), torch.from_numpy(layouts)], dim=1)
    accuracies, errors = {}, []
    for column, (name, probabilities) in enumerate(oracle.predict(images).items()):
        confidence, found = probabilities.cpu().double().max(dim=1)
        right = found == truth[:, column]
        accuracies[name] = right.double().mean().item()
        if name in ATTRIBUTES:
            errors.append(calibration_error(confidence, right))
    mean = sum(accuracies[name] for name in ATTRIBUTES) / len(ATTRIBUTES)
    return accuracies | {"mean": mean, "calibration_error": sum(errors) / len(errors)}


def calibration_error(confidence: torch.Tensor, right: torch.Tensor, num_bins: int = 15) -> float:
    """Returns the expected calibration error of answers `[n]` with these confidences `[n]` in [0, 1].

    It is, over equal bins of confidence, the mean distance of accuracy and confidence, weighted by the bin's answers
    (Guo et al. 2017, eq. 3).
    """
    bins = (confidence * num_bins).ceil().long().clamp(1, num_bins) - 1
    gaps = torch.zeros(num_bins, dtype=torch.double).index_add(0, bins, right.double() - confidence.double())
    return (gaps.abs().sum() / len(confidence)).item()
