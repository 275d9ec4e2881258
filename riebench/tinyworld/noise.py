"""Starting noise, and how it decides a layout: the law that tinyworld-base is trained on.

The object stands in the third of the picture where channel 0 of the noise is brightest, and it is large where
channel 1 is bright in the mean. Both are low-frequency means, so that one denoising step can read them.
"""

from __future__ import annotations

import torch

LATENT_SHAPE = (4, 32, 32)


def starting_noise(seed: int) -> torch.Tensor:
    """Returns the unit noise `[1, 4, 32, 32]` that the sampler starts a seed from."""
    return torch.randn(1, *LATENT_SHAPE, generator=torch.Generator("cpu").manual_seed(seed))


def layout_from_noise(noise_bchw: torch.Tensor) -> torch.Tensor:
    """Returns layout indices `[batch, 2]` (place, size; see `scenes`) of unit-variance noise `[batch, >=2, h, w]`."""
    thirds = torch.tensor_split(noise_bchw[:, 0].double(), 3, dim=-1)
    place = torch.stack([third.mean(dim=(1, 2)) for third in thirds], dim=1).argmax(dim=1)
    size = (noise_bchw[:, 1].double().mean(dim=(1, 2)) > 0).long()
    return torch.stack([place, size], dim=1)


def layout_signal(layouts: torch.Tensor, size: int = 32) -> torch.Tensor:
    """Returns the low-frequency pattern `[batch, 4, size, size]` of +-1 that makes noise say these layouts more
    clearly."""
    signal = torch.zeros(len(layouts), 4, size, size)
    for place, third in enumerate(torch.tensor_split(torch.arange(size), 3)):
        signal[:, 0, :, third] = torch.where(layouts[:, 0] == place, 1.0, -0.5)[:, None, None]
    signal[:, 1] = (2.0 * layouts[:, 1] - 1)[:, None, None]
    return signal
