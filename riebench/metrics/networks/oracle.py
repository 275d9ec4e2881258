"""tinyworld's oracle, which is shipped: the attributes that it reads in a picture. Imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from riebench.core.files import data_folder
from riebench.metrics.networks.base import Description, Network

if TYPE_CHECKING:
    import torch

    from riebench.metrics.networks.remembered import Remembered
    from riebench.tinyworld.oracle import Oracle


class OracleNetwork(Network):
    """The oracle, which once loaded is called with images and returns (attribute indices, int64 `[b, 8]`,)."""

    key, label = "attributes", "Oracle"
    only = 64

    def describe(self) -> Description:
        return Description("tinyworld's oracle", [data_folder() / "tinyworld" / "oracle.safetensors"], "none")

    def load(self, device: torch.device | str, batch_size: int, keep_marks: bool) -> Remembered:
        from riebench.metrics.networks.remembered import Remembered
        from riebench.tinyworld.oracle import load_oracle

        return Remembered(Attributes(load_oracle(device)), device, batch_size)


class Attributes:
    """An oracle that reads images in [0, 1] and returns (attribute indices, int64 `[b, 8]`,)."""

    def __init__(self, oracle: Oracle) -> None:
        self.oracle = oracle

    def __call__(self, images_bchw: torch.Tensor) -> tuple[torch.Tensor]:
        return (self.oracle.attributes(images_bchw),)


ORACLE = OracleNetwork()
