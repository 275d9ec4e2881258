"""LPIPS (Zhang et al. 2018, v0.1) on three trunks. AlexNet's weights are shipped; those of VGG and SqueezeNet are
torchvision's own files, in torch's cache; the heads are the lpips package's. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from riebench.core.files import data_folder
from riebench.metrics.networks.base import Description, Network

if TYPE_CHECKING:
    import torch

    from riebench.metrics.networks.lpips_distance import Lpips

Net = Literal["alex", "vgg", "squeeze"]


@dataclass(frozen=True)
class LpipsNetwork(Network):
    """LPIPS on one trunk."""

    net: Net
    """What the lpips package calls the trunk."""
    key: str
    label: str
    trunk: str
    """The trunk in words."""
    largest_batch: int
    """The most images that are read at once."""
    remembers: bool
    """Whether features of images are kept for when they come back."""
    smallest: int
    """The least height and width at which each of the trunk's layers has a cell."""
    torchvision: str = ""
    """What torchvision calls the trunk's weights; "" for those that are shipped."""

    @property
    def trunk_path(self) -> Path:
        """Says where the trunk's weights lie, if they are there."""
        if not self.torchvision:
            return data_folder() / "lpips" / f"{self.net}.safetensors"
        import torch
        from torchvision.models import get_weight

        return Path(torch.hub.get_dir()) / "checkpoints" / Path(get_weight(self.torchvision).url).name

    @property
    def head_path(self) -> Path:
        """Says where the lpips package keeps its linear heads."""
        import lpips

        return Path(lpips.__file__).parent / "weights" / "v0.1" / f"{self.net}.pth"

    @property
    def remedy(self) -> str:
        """Says what to do where the trunk's weights are missing or broken."""
        if not self.torchvision:
            return "install riebench again"
        family, _, kind = self.torchvision.partition(".")
        command = f'python -c "from torchvision.models import {family}; {family}.{kind}.get_state_dict()"'
        return f"{'remove it, then' if self.trunk_path.exists() else 'where there is a network,'} run `{command}`"

    def describe(self) -> Description:
        return Description(
            f"LPIPS v0.1, {self.trunk}",
            [self.trunk_path, self.head_path],
            "scaled to [-1, 1], at the image's own size",
            fetch=f"torchvision's {self.torchvision}" if self.torchvision else "",
        )

    def load(self, device: torch.device | str, batch_size: int, keep_marks: bool) -> Lpips:
        from riebench.metrics.networks import lpips_distance

        return lpips_distance.Lpips(self, device, batch_size)


ALEX = LpipsNetwork("alex", "lpips", "LPIPS-Alex", "AlexNet", largest_batch=64, remembers=True, smallest=31)
VGG = LpipsNetwork(
    "vgg",
    "lpips_vgg",
    "LPIPS-VGG",
    "VGG-16",
    largest_batch=4,  # features of an image of 512 px are 130 MB
    remembers=False,
    smallest=16,
    torchvision="VGG16_Weights.IMAGENET1K_V1",
)
SQUEEZE = LpipsNetwork(
    "squeeze",
    "lpips_squeeze",
    "LPIPS-Squeeze",
    "SqueezeNet 1.1",
    largest_batch=16,
    remembers=False,
    smallest=17,
    torchvision="SqueezeNet1_1_Weights.IMAGENET1K_V1",
)
