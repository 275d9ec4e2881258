"""This is the JumpReLU sparse autoencoder (Rajamanoharan et al. 2024, arXiv 2407.14435), for inference.

BatchTopK and ReLU autoencoders are exported as this one: with one threshold for all features, and with 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from sae_models.autoencoder import Autoencoder
from sae_models.settings import refuse_unless_whole


@dataclass(frozen=True)
class JumpReLUConfig:
    """This is the shape of a `JumpReLUSAE`. Raises `UserError` where no such autoencoder exists."""

    width: int
    """d: the number of values in an input row."""
    num_features: int
    """f: the number of latents."""
    kind: ClassVar[str] = "jumprelu"
    """What a checkpoint and an index call it."""
    k: ClassVar[int] = 0
    """No number limits the active latents on a row."""

    def __post_init__(self) -> None:
        refuse_unless_whole(self, "width", "num_features")

    def sae(self) -> JumpReLUSAE:
        """Returns an autoencoder of this shape, with random weights."""
        return JumpReLUSAE(self)


class JumpReLUSAE(Autoencoder):
    """It computes z = h where h > threshold else 0, with h and x_hat as in `Autoencoder`.

    It has one more parameter, named as SAELens does: `threshold` [f], none below zero.
    """

    def __init__(self, config: JumpReLUConfig, *, seed: int = 0) -> None:
        """Thresholds start at 0."""
        super().__init__(config.width, config.num_features, seed)
        self.config = config
        self.threshold = nn.Parameter(torch.zeros(config.num_features))

    def encode(self, x_nd: Tensor) -> Tensor:
        h_nf = self.preactivations(x_nd)
        return h_nf * (h_nf > self.threshold)
