"""LPIPS with AlexNet (Zhang et al. 2018, v0.1), from shipped weights: whole image, and outside the region."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

import lpips
import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import nn

from riebench.batches import fixed_batches
from riebench.errors import UserError
from riebench.files import data_folder
from riebench.metrics import METRICS, ScoreBatch
from riebench.metrics.remembered import BATCH_SIZE, Remembered

if TYPE_CHECKING:
    from riebench.metrics.models import ScoringModels

_SLICES = {0: 1, 3: 2, 6: 3, 8: 4, 10: 5}  # torchvision's layer -> the slice of lpips's AlexNet that holds it


def trunk_state() -> dict[str, torch.Tensor]:
    """The five convolutions of AlexNet under the names that `lpips.LPIPS` gives them.

    Raises `UserError` when the shipped file is missing or broken.
    """
    path = data_folder() / "lpips" / "alex.safetensors"
    try:
        tensors = load(path.read_bytes())
    except (OSError, SafetensorError) as error:
        raise UserError(f"LPIPS's weights {path} cannot be read: {error}", remedy="install riebench again") from error
    state = {}
    for name, tensor in tensors.items():
        _, layer, kind = name.split(".")
        state[f"net.slice{_SLICES[int(layer)]}.{layer}.{kind}"] = tensor
    return state


def head_state() -> dict[str, torch.Tensor]:
    """The five linear heads, from the lpips package's own file."""
    path = Path(lpips.__file__).parent / "weights" / "v0.1" / "alex.pth"
    return torch.load(path, map_location="cpu", weights_only=True)


def _network(state: dict[str, torch.Tensor], *, spatial: bool) -> lpips.LPIPS:
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # lpips asks torchvision for an untrained AlexNet in a deprecated way
        network = lpips.LPIPS(net="alex", pretrained=False, pnet_rand=True, spatial=spatial, verbose=False)
    network.load_state_dict(state, strict=False, assign=True)
    missing = [name for name, tensor in network.state_dict().items() if tensor.is_meta]
    if missing:
        raise UserError(f"LPIPS's weights lack {', '.join(missing)}", remedy="install riebench and lpips again")
    return network.requires_grad_(False)


class _Given(nn.Module):
    """Stands in the trunk's place and returns features that are known already, in turn."""

    def __init__(self) -> None:
        super().__init__()
        self.features: list[tuple[torch.Tensor, ...]] = []

    def forward(self, _images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self.features.pop(0)


class LpipsAlex:
    """LPIPS between images `[b, 3, h, w]` in [0, 1], which are scaled to the [-1, 1] it was fitted on.

    Images are measured at their own size. At 64 px, below the size AlexNet was trained at, the five feature maps are
    15, 7, 3, 3 and 3 cells wide; the values are well defined, but compare only with others of the same size.
    """

    def __init__(self, device: torch.device | str = "cpu", batch_size: int = BATCH_SIZE) -> None:
        state = trunk_state() | head_state()
        self._device, self._batch_size = device, batch_size
        self._whole = _network(state, spatial=False).to(device)
        self._spatial = _network(state, spatial=True).to(device)
        trunk, scale = self._whole.net, self._whole.scaling_layer
        self._features = Remembered(lambda images: tuple(trunk(scale(2 * images - 1))), device, batch_size)
        self._whole.net = self._spatial.net = _Given()

    def distance(self, a_bchw: torch.Tensor, b_bchw: torch.Tensor) -> torch.Tensor:
        """`[b]`, on the CPU."""
        return self._measure(self._whole, a_bchw, b_bchw).reshape(len(a_bchw))

    def distance_map(self, a_bchw: torch.Tensor, b_bchw: torch.Tensor) -> torch.Tensor:
        """`[b, h, w]`, on the CPU: every layer's map, raised bilinearly to the image's size, summed."""
        return self._measure(self._spatial, a_bchw, b_bchw).squeeze(1)

    def forget(self) -> None:
        """Forgets all images."""
        self._features.forget()

    @torch.no_grad()
    def _measure(self, network: lpips.LPIPS, a_bchw: torch.Tensor, b_bchw: torch.Tensor) -> torch.Tensor:
        features = [self._features(images) for images in (a_bchw, b_bchw)]
        found = []
        for batch, count in fixed_batches(range(len(a_bchw)), self._batch_size):
            network.net.features = [tuple(layer[batch] for layer in side) for side in features]
            found.append(network(a_bchw[batch].to(self._device), b_bchw[batch].to(self._device))[:count].cpu())
        return torch.cat(found)


@dataclass(frozen=True)
class LpipsWhole:
    """LPIPS of the intervened image with one side's image."""

    lpips: LpipsAlex
    side: Literal["original", "edited"]
    higher_is_better: ClassVar[bool] = False
    bounds: ClassVar[tuple[float, float]] = (0.0, math.inf)

    @property
    def name(self) -> str:
        return f"lpips_{self.side}"

    @property
    def summary(self) -> str:
        return METRICS.summary(self.name)

    def score(self, batch: ScoreBatch) -> np.ndarray:
        return self.lpips.distance(batch.intervened, getattr(batch, self.side)).double().numpy()


def original(models: ScoringModels) -> LpipsWhole:
    return LpipsWhole(models.lpips, "original")


def edited(models: ScoringModels) -> LpipsWhole:
    return LpipsWhole(models.lpips, "edited")


class LpipsOutside:
    """Mean of the LPIPS map to the original image over the pixels outside the region; NaN where none is.

    The map's cells see some way into the region: at 64 px a pixel's deepest features see the whole image.
    """

    name = "lpips_outside"
    higher_is_better = False
    bounds = (0.0, math.inf)
    summary = METRICS.summary(name)

    def __init__(self, models: ScoringModels) -> None:
        self._lpips = models.lpips

    def score(self, batch: ScoreBatch) -> np.ndarray:
        distances = self._lpips.distance_map(batch.intervened, batch.original).double()
        outside = batch.outside.to(distances.device)
        return (distances * outside).sum(dim=(1, 2)).div(outside.sum(dim=(1, 2))).numpy()
