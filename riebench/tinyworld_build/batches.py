"""Batches of rendered scenes, as the models of tinyworld are trained and judged on them."""

from __future__ import annotations

import numpy as np
import torch

from riebench.tinyworld.render import render
from riebench.tinyworld.scenes import sample_attributes, sample_layouts


def images_to_tensor(image_bhwc: np.ndarray) -> torch.Tensor:
    """Turns uint8 `[b, h, w, 3]` into float32 `[b, 3, h, w]` in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(image_bhwc)).permute(0, 3, 1, 2).float() / 127.5 - 1


def random_scenes(seed: int, step: int, count: int, split: str = "train"):
    """Returns (attributes, layouts, rendering) of the batch of a step: a pure function of its arguments."""
    rng = np.random.default_rng([seed, step])
    attributes, layouts = sample_attributes(rng, count, split), sample_layouts(rng, count)
    return attributes, layouts, render(attributes, layouts)
