"""Starting noise, and how it decides a layout: the laws that tinyworld's generators are trained on.

Four parts of the noise say it: the object stands left, in the centre or right as the first, second or third part is
brightest in the mean, and it is large where the fourth is bright in the mean. All are low-frequency means, so that one
denoising step can read them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, eq=False)
class NoiseLaw:
    """Describes the starting noise of a generator, and which values of it say the layout.

    parts: bool `[4, channels, height, width]`, of the three places in the order of `scenes.PLACES`, and of the size.
    """

    parts: torch.Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        """Returns the shape (channels, height, width) of the noise."""
        return tuple(self.parts.shape[1:])


def _thirds_of_a_channel(shape: tuple[int, int, int]) -> torch.Tensor:
    """Returns parts that are the thirds of channel 0 from left to right, and the whole of channel 1."""
    parts = torch.zeros(4, *shape, dtype=torch.bool)
    for place, columns in enumerate(torch.tensor_split(torch.arange(shape[-1]), 3)):
        parts[place, 0, :, columns] = True
    parts[3, 1] = True
    return parts


def _whole_channels(shape: tuple[int, int, int]) -> torch.Tensor:
    """Returns parts that are the channels 0 to 3, one each."""
    parts = torch.zeros(4, *shape, dtype=torch.bool)
    parts[torch.arange(4), torch.arange(4)] = True
    return parts


#: Of tinyworld's U-Nets, whose convolutions see where the borders of the picture are.
UNET_NOISE = NoiseLaw(_thirds_of_a_channel((4, 32, 32)))
#: Of tinyworld-flux. A transformer knows where a token stands only by comparing it with others, so no part of its noise
#: is told from another by where it stands.
FLUX_NOISE = NoiseLaw(_whole_channels((16, 16, 16)))


def starting_noise(seed: int, law: NoiseLaw = UNET_NOISE) -> torch.Tensor:
    """Returns the unit noise `[1, channels, height, width]` that a pipeline starts a seed from."""
    return torch.randn(1, *law.shape, generator=torch.Generator("cpu").manual_seed(seed))


def layout_from_noise(noise_bchw: torch.Tensor, law: NoiseLaw = UNET_NOISE) -> torch.Tensor:
    """Returns layout indices `[batch, 2]` (place, size; see `scenes`) of unit-variance noise."""
    means = torch.stack([noise_bchw[:, part].double().mean(dim=1) for part in law.parts], dim=1)
    return torch.stack([means[:, :3].argmax(dim=1), (means[:, 3] > 0).long()], dim=1)


def layout_signal(layouts: torch.Tensor, law: NoiseLaw = UNET_NOISE) -> torch.Tensor:
    """Returns the low-frequency pattern `[batch, channels, height, width]` that makes noise say these layouts more
    clearly: 1 in the place's part, -0.5 in the other two, and 1 or -1 in the size's."""
    places = torch.where(layouts[:, :1] == torch.arange(3), 1.0, -0.5)
    weights = torch.cat([places, 2.0 * layouts[:, 1:] - 1], dim=1)
    return torch.einsum("bp,pchw->bchw", weights, law.parts.float())
