"""LPIPS (Zhang et al. 2018, v0.1): whole image, and outside the region. AlexNet's weights are shipped; those of VGG and
SqueezeNet are torchvision's own files, in torch's cache."""

from __future__ import annotations

import math
import pickle
import re
import warnings
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import lpips
import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import nn
from torchvision.models import get_weight

from riebench.core.batches import fixed_batches
from riebench.core.errors import UserError
from riebench.core.files import data_folder
from riebench.metrics import ScoreBatch
from riebench.metrics.clip import Side
from riebench.metrics.remembered import BATCH_SIZE, REMEMBERED_IMAGES, Remembered, contents
from riebench.metrics.shared import SharedMetric, mean_outside
from riebench.metrics.weights import Network

if TYPE_CHECKING:
    from riebench.metrics.models import ScoringModels

Net = Literal["alex", "vgg", "squeeze"]
#: Net -> torchvision's weights, for those that are not shipped.
TORCHVISION = {"vgg": "VGG16_Weights.IMAGENET1K_V1", "squeeze": "SqueezeNet1_1_Weights.IMAGENET1K_V1"}
LARGEST_BATCH = {"alex": 64, "vgg": 4, "squeeze": 16}  # VGG's features of an image of 512 px are 130 MB
REMEMBERED_BATCHES = 4  # whose distances are kept: other metrics ask for them too


def trunk_path(net: Net) -> Path:
    """Where the trunk's weights lie, if they are there."""
    if net == "alex":
        return data_folder() / "lpips" / "alex.safetensors"
    return Path(torch.hub.get_dir()) / "checkpoints" / Path(get_weight(TORCHVISION[net]).url).name


def trunk_state(net: Net = "alex") -> dict[str, torch.Tensor]:
    """The trunk's convolutions under torchvision's names ("features.0.weight").

    Raises `UserError` when its file is missing or broken.
    """
    path = trunk_path(net)
    try:
        if net == "alex":
            return load(path.read_bytes())
        return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, SafetensorError, pickle.UnpicklingError, RuntimeError, LookupError, EOFError) as error:
        raise UserError(
            f"LPIPS's weights {path} cannot be read: {str(error).splitlines()[0]}", remedy=_remedy(net, path)
        ) from error


def _remedy(net: Net, path: Path) -> str:
    if net == "alex":
        return "install riebench again"
    family, _, kind = TORCHVISION[net].partition(".")
    command = f'python -c "from torchvision.models import {family}; {family}.{kind}.get_state_dict()"'
    return f"{'remove it, then' if path.exists() else 'where there is a network,'} run `{command}`"


def head_path(net: Net = "alex") -> Path:
    return Path(lpips.__file__).parent / "weights" / "v0.1" / f"{net}.pth"


def head_state(net: Net = "alex") -> dict[str, torch.Tensor]:
    """The linear heads, one a layer, from the lpips package's own file."""
    return torch.load(head_path(net), map_location="cpu", weights_only=True)


def network(net: Net) -> Network:
    """What is known of a net without loading it."""
    names = {"alex": "AlexNet", "vgg": "VGG-16", "squeeze": "SqueezeNet 1.1"}
    return Network(
        f"LPIPS v0.1, {names[net]}",
        [trunk_path(net), head_path(net)],
        "scaled to [-1, 1], at the image's own size",
        fetch=f"torchvision's {TORCHVISION[net]}" if net in TORCHVISION else "",
    )


def _network(net: Net, trunk: dict[str, torch.Tensor], *, spatial: bool) -> lpips.LPIPS:
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # lpips asks torchvision for an untrained trunk in a deprecated way
        found = lpips.LPIPS(net=net, pretrained=False, pnet_rand=True, spatial=spatial, verbose=False)
    names = {name: re.sub(r"^net\.slice\d+", "features", name) for name in found.state_dict()}
    state = {name: trunk[torchvisions] for name, torchvisions in names.items() if torchvisions in trunk}
    found.load_state_dict(state | head_state(net), strict=False, assign=True)
    missing = [name for name, tensor in found.state_dict().items() if tensor.is_meta]
    if missing:
        raise UserError(f"LPIPS's weights lack {', '.join(missing)}", remedy="install riebench and lpips again")
    return found.requires_grad_(False)


class _Given(nn.Module):
    """Stands in the trunk's place and returns features that are known already, in turn."""

    def __init__(self) -> None:
        super().__init__()
        self.features: list[tuple[torch.Tensor, ...]] = []

    def forward(self, _images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self.features.pop(0)


class Lpips:
    """LPIPS between images `[b, 3, h, w]` in [0, 1], which are scaled to the [-1, 1] it was fitted on.

    Images are measured at their own size. At 64 px, below the size AlexNet was trained at, its five feature maps are
    15, 7, 3, 3 and 3 cells wide; the values are well defined, but compare only with others of the same size.
    Raises `UserError` where weights are missing.
    """

    def __init__(self, net: Net = "alex", device: torch.device | str = "cpu", batch_size: int = BATCH_SIZE) -> None:
        trunk = trunk_state(net)
        self._device, self._batch_size = device, min(batch_size, LARGEST_BATCH[net])
        self._whole = _network(net, trunk, spatial=False).to(device)
        self._spatial = _network(net, trunk, spatial=True).to(device)
        trunk, scale = self._whole.net, self._whole.scaling_layer
        self._features = Remembered(
            lambda images: tuple(trunk(scale(2 * images - 1))),
            device,
            self._batch_size,
            keep=REMEMBERED_IMAGES if net == "alex" else 0,
        )
        self._whole.net = self._spatial.net = _Given()
        self._distances: dict[tuple[tuple[bytes, bytes], ...], torch.Tensor] = {}

    def distance(self, a_bchw: torch.Tensor, b_bchw: torch.Tensor) -> torch.Tensor:
        """`[b]`, on the CPU."""
        asked = tuple(zip(contents(a_bchw), contents(b_bchw), strict=True))
        if asked not in self._distances:
            found = self._measure(self._whole, a_bchw, b_bchw).reshape(len(a_bchw))
            self._distances = dict(list(self._distances.items())[1 - REMEMBERED_BATCHES :]) | {asked: found}
        return self._distances[asked].clone()

    def distance_map(self, a_bchw: torch.Tensor, b_bchw: torch.Tensor) -> torch.Tensor:
        """`[b, h, w]`, on the CPU: every layer's map, raised bilinearly to the image's size, summed."""
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


class LpipsMetric(SharedMetric):
    """A distance of the intervened image by one of the nets.

    Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric", 2018 (arXiv 1801.03924).
    """

    source = "Zhang et al. 2018 (arXiv 1801.03924)"
    higher_is_better = False
    bounds = (0.0, math.inf)

    def __init__(self, models: ScoringModels, net: Net, kind: str) -> None:
        super().__init__(models)
        part = "" if net == "alex" else f"_{net}"
        self.uses, self.name = (f"lpips{part}",), f"lpips{part}_{kind}"
        self.label = f"LPIPS-{net.upper() if net == 'vgg' else net.title()}, {kind}"

    @property
    def lpips(self) -> Lpips:
        return getattr(self.models, self.uses[0])


class LpipsWhole(LpipsMetric):
    """LPIPS of the intervened image with one side's image."""

    always = True

    def __init__(self, models: ScoringModels, net: Net, side: Side) -> None:
        super().__init__(models, net, side)
        self.side = side
        self.inputs = ("edited image",) if side == "edited" else ()

    def score(self, batch: ScoreBatch) -> np.ndarray:
        return self.lpips.distance(batch.intervened, getattr(batch, self.side)).double().numpy()


class LpipsOutside(LpipsMetric):
    """Mean of the LPIPS map to the original image over the pixels outside the region; NaN where none is.

    The map's cells see some way into the region: at 64 px a pixel's deepest features see the whole image.
    """

    always = False
    inputs = ("region",)

    def __init__(self, models: ScoringModels, net: Net) -> None:
        super().__init__(models, net, "outside")

    def score(self, batch: ScoreBatch) -> np.ndarray:
        return mean_outside(self.lpips.distance_map(batch.intervened, batch.original), batch.outside.cpu())


original = partial(LpipsWhole, net="alex", side="original")
edited = partial(LpipsWhole, net="alex", side="edited")
outside = partial(LpipsOutside, net="alex")
vgg_original = partial(LpipsWhole, net="vgg", side="original")
vgg_edited = partial(LpipsWhole, net="vgg", side="edited")
vgg_outside = partial(LpipsOutside, net="vgg")
squeeze_original = partial(LpipsWhole, net="squeeze", side="original")
squeeze_edited = partial(LpipsWhole, net="squeeze", side="edited")
squeeze_outside = partial(LpipsOutside, net="squeeze")
