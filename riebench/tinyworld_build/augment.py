"""What the judges are trained on: rendered scenes, degraded as a small generator degrades them."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch.nn import functional as F

from riebench.tinyworld.render import Rendering
from riebench.tinyworld_build.batches import images_to_tensor, random_scenes

USES = 2  # training steps that share one rendered batch, each with its own degradation


def training_scenes(seed: int, step: int, count: int):
    """Returns (attributes, layouts, rendering) of a training step: as `random_scenes`, one rendering for `USES` steps.

    Drawn from every combination of attributes that is not held out.
    """
    return _rendered(seed, step // USES, count)


@lru_cache(maxsize=1)
def _rendered(seed: int, index: int, count: int):
    return random_scenes(seed, index, count)


def unit_images(rendering: Rendering) -> torch.Tensor:
    """Returns the rendering as float32 `[b, 3, h, w]` in [0, 1]: how images travel between rooms."""
    return images_to_tensor(rendering.image_bhwc) / 2 + 0.5


def degrade(images_bchw: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Returns images in [0, 1] with what a small autoencoder and a one-step U-Net do to them, independently per image:

    a ghost of another image of the batch (weight up to 0.15) and blur (up to two 3x3 means), but not in one image of
    five; loss of saturation (up to 15 %); brightness (8 % either way); blotches of colour 16 px and 4 px wide (sigma up
    to 0.03 and 0.08); white noise (sigma up to 0.06). generator: a CPU generator, the only source of randomness.
    """
    count, size = len(images_bchw), images_bchw.shape[-1]

    def uniform(low: float, high: float) -> torch.Tensor:
        return (low + (high - low) * torch.rand(count, 1, 1, 1, generator=generator)).to(images_bchw.device)

    def normal(cells: int) -> torch.Tensor:
        return torch.randn(count, 3, cells, cells, generator=generator).to(images_bchw.device)

    sharp = uniform(0, 1) < 0.2
    images = images_bchw.lerp(images_bchw.roll(1, dims=0), uniform(0, 0.15).masked_fill(sharp, 0))
    for _ in range(2):
        blurred = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
        images = images.lerp(blurred, uniform(0, 1).masked_fill(sharp, 0))
    images = images.lerp(images.mean(dim=1, keepdim=True), uniform(0, 0.15)) * uniform(0.92, 1.08)
    for width, sigma in ((16, 0.03), (4, 0.08)):
        blotches = uniform(0, sigma) * normal(size // width)
        images = images + F.interpolate(blotches, size=size, mode="bilinear")
    return (images + uniform(0, 0.06) * normal(size)).clamp(0, 1)
