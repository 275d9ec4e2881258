"""LPIPS between images: whole, and as a map."""

from __future__ import annotations

import pickle
import re
import warnings
from typing import TYPE_CHECKING

import lpips
import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import nn

from riebench.core.batches import fixed_batches
from riebench.core.errors import UserError
from riebench.core.memory import is_out_of_memory
from riebench.metrics.networks.base import BATCH_SIZE
from riebench.metrics.networks.remembered import REMEMBERED_IMAGES, Remembered, contents

if TYPE_CHECKING:
    from riebench.metrics.networks.lpips import LpipsNetwork

REMEMBERED_BATCHES = 4  # whose distances are kept: other metrics ask for them too


def trunk_state(network: LpipsNetwork) -> dict[str, torch.Tensor]:
    """Returns the trunk's convolutions under torchvision's names ("features.0.weight").

    Raises `UserError` when its file is missing or broken.
    """
    path = network.trunk_path
    try:
        if network.torchvision:
            return torch.load(path, map_location="cpu", weights_only=True)
        return load(path.read_bytes())
    except (OSError, SafetensorError, pickle.UnpicklingError, RuntimeError, LookupError, EOFError) as error:
        if is_out_of_memory(error):
            raise
        raise UserError(
            f"LPIPS's weights {path} cannot be read: {str(error).splitlines()[0]}", remedy=network.remedy
        ) from error


def head_state(network: LpipsNetwork) -> dict[str, torch.Tensor]:
    """Returns the linear heads, one a layer, from the lpips package's own file."""
    return torch.load(network.head_path, map_location="cpu", weights_only=True)


class Lpips:
    """LPIPS between images `[b, 3, h, w]` in [0, 1], which are scaled to the [-1, 1] it was fitted on.

    Images are measured at their own size. At 64 px, below the size AlexNet was trained at, its five feature maps are
    15, 7, 3, 3 and 3 cells wide; the values are well defined, but compare only with others of the same size.
    Raises `UserError` where weights are missing.
    """

    def __init__(self, network: LpipsNetwork, device: torch.device | str = "cpu", batch_size: int = BATCH_SIZE) -> None:
        trunk = trunk_state(network)
        self._device, self._batch_size = device, min(batch_size, network.largest_batch)
        self._whole = _build(network, trunk, spatial=False).to(device)
        self._spatial = _build(network, trunk, spatial=True).to(device)
        features = _Features(self._whole.net, self._whole.scaling_layer)
        keep = REMEMBERED_IMAGES if network.remembers else 0
        self._features = Remembered(features, device, self._batch_size, keep=keep)
        self._whole.net = self._spatial.net = _Given()
        self._distances: dict[tuple[tuple[bytes, bytes], ...], torch.Tensor] = {}

    def distance(self, a_bchw: torch.Tensor, b_bchw: torch.Tensor) -> torch.Tensor:
        """Returns the distances `[b]`, on the CPU."""
        asked = tuple(zip(contents(a_bchw), contents(b_bchw), strict=True))
        if asked not in self._distances:
            found = self._measure(self._whole, a_bchw, b_bchw).reshape(len(a_bchw))
            self._distances = dict(list(self._distances.items())[1 - REMEMBERED_BATCHES :]) | {asked: found}
        return self._distances[asked].clone()

    def distance_map(self, a_bchw: torch.Tensor, b_bchw: torch.Tensor) -> torch.Tensor:
        """Returns `[b, h, w]`, on the CPU: every layer's map, raised bilinearly to the image's size, summed."""
        return self._measure(self._spatial, a_bchw, b_bchw).squeeze(1)

    def forget(self) -> None:
        """Forgets all images."""
        self._features.forget()
        self._distances.clear()

    @torch.no_grad()
    def _measure(self, network: lpips.LPIPS, a_bchw: torch.Tensor, b_bchw: torch.Tensor) -> torch.Tensor:
        features = [self._features(images) for images in (a_bchw, b_bchw)]
        found = []
        for batch, count in fixed_batches(range(len(a_bchw)), self._batch_size):
            network.net.features = [tuple(layer[batch] for layer in side) for side in features]
            found.append(network(a_bchw[batch].to(self._device), b_bchw[batch].to(self._device))[:count].cpu())
        return torch.cat(found)


class _Features:
    """A trunk that reads images in [0, 1] and returns its layers' features."""

    def __init__(self, trunk: nn.Module, scale: nn.Module) -> None:
        self.trunk, self.scale = trunk, scale

    def __call__(self, images_bchw: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(self.trunk(self.scale(2 * images_bchw - 1)))


class _Given(nn.Module):
    """A module that stands in the trunk's place and returns features that are known already, in turn."""

    def __init__(self) -> None:
        super().__init__()
        self.features: list[tuple[torch.Tensor, ...]] = []

    def forward(self, _images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self.features.pop(0)


def _build(network: LpipsNetwork, trunk: dict[str, torch.Tensor], *, spatial: bool) -> lpips.LPIPS:
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # lpips asks torchvision for an untrained trunk in a deprecated way
        found = lpips.LPIPS(net=network.net, pretrained=False, pnet_rand=True, spatial=spatial, verbose=False)
    names = {name: re.sub(r"^net\.slice\d+", "features", name) for name in found.state_dict()}
    state = {name: trunk[torchvisions] for name, torchvisions in names.items() if torchvisions in trunk}
    found.load_state_dict(state | head_state(network), strict=False, assign=True)
    missing = [name for name, tensor in found.state_dict().items() if tensor.is_meta]
    if missing:
        raise UserError(f"LPIPS's weights lack {', '.join(missing)}", remedy="install riebench and lpips again")
    return found.requires_grad_(False)
