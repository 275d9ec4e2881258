"""What a ViT's keys say of an image's layout: the cosines of all tokens' keys with one another.

Tumanyan et al., "Splicing ViT Features for Semantic Appearance Transfer", 2022 (arXiv 2201.00424), eq. 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as TF
from transformers import ViTModel

from riebench.core.checkpoints import fetched, load_whole

KEYS = ("k_proj", "key")  # what transformers calls the projection, from version 5 on and before


class KeySimilarity:
    """A model that reads images in [0, 1] and returns (their self-similarity,).

    size: height and width to which images are brought before the model's mean and std of colours are taken out.
    """

    def __init__(self, model: ViTModel, size: int, mean: Sequence[float], std: Sequence[float]) -> None:
        self.model, self._size, self._mean, self._std = model, size, list(mean), list(std)

    def __call__(self, images_bchw: torch.Tensor) -> tuple[torch.Tensor]:
        return (self_similarity(self.model, self.preprocess(images_bchw)),)

    def preprocess(self, images_bchw: torch.Tensor) -> torch.Tensor:
        """Returns images in [0, 1] as the model reads them."""
        resized = TF.resize(images_bchw, [self._size] * 2, InterpolationMode.BILINEAR, antialias=True)
        return TF.normalize(resized, self._mean, self._std)


def load_vit(name: str, folder: Path, device: torch.device | str = "cpu") -> ViTModel:
    """Returns the model that lies in a folder of transformers, in float32.

    Raises `UserError` where tensors are missing or the files cannot be read. name: what `riebench fetch` calls it.
    """
    with fetched(name, folder):
        model = load_whole(ViTModel, folder, dtype=torch.float32, use_safetensors=True, add_pooling_layer=False)
    return model.to(device).eval().requires_grad_(False)


def self_similarity(model: ViTModel, pixels_bchw: torch.Tensor) -> torch.Tensor:
    """Returns the cosines `[b, n, n]` of the n tokens' keys in the model's last layer with one another.

    A token's keys of all heads are taken together, and [CLS] is among the tokens. While it runs, a hook is on the
    model: two threads must not share one.
    """
    keys: list[torch.Tensor] = []
    handle = _key_projection(model).register_forward_hook(lambda _module, _inputs, output: keys.append(output))
    try:
        with torch.no_grad():
            model(pixels_bchw)
    finally:
        handle.remove()
    unit_bnc = F.normalize(keys[0], dim=2)
    return unit_bnc @ unit_bnc.transpose(1, 2)


def _key_projection(model: ViTModel) -> nn.Module:
    """Returns the last one in the model's order: that of the deepest layer."""
    return [module for name, module in model.named_modules() if name.rpartition(".")[2] in KEYS][-1]
