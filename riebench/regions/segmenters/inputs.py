"""What models of transformers are given: 8-bit images, one noun at a time, and weights from this machine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from riebench.core.checkpoints import fetched, load_whole
from riebench.core.hub import weights_folder
from riebench.core.memory import room_for
from riebench.regions.grounders import GROUNDER_WEIGHTS


def pil_images(images_bchw: Tensor) -> list[Image.Image]:
    """Returns images in [0, 1] as 8-bit RGB."""
    rounded = (images_bchw.detach().float().clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(image) for image in rounded]


def rounds(phrases: Sequence[tuple[str, ...]]) -> Iterator[tuple[list[str], list[bool]]]:
    """Yields one noun an image at a time: (nouns, whether each is a new one), until every image had all of its own.

    An image that has run out of nouns gets its last one again, so that every batch has the same size.
    """
    for turn in range(max(map(len, phrases), default=0)):
        yield [nouns[min(turn, len(nouns) - 1)] for nouns in phrases], [turn < len(nouns) for nouns in phrases]


def to_model(inputs: Any, model: nn.Module) -> dict[str, Any]:
    """Returns a processor's inputs on the model's device, those that are float in its precision."""
    return {
        name: value.to(model.device, model.dtype if value.is_floating_point() else value.dtype)
        for name, value in inputs.items()
    }


def load_pair(name: str, index: int, model: type, processor: type, device: torch.device | str) -> tuple[Any, Any]:
    """Returns model and processor from the grounder's index-th weights, in float32, for inference.

    name: the grounder's, as in `riebench fetch`. Raises `UserError` where files or tensors are missing, or cannot be
    read, and where there is no room for them.
    """
    weights = GROUNDER_WEIGHTS[name][index]
    folder = weights_folder(name, weights)
    with room_for(f"the grounder's {weights.repo}", device, weights.gigabytes), fetched(name, folder):
        loaded = load_whole(model, folder, dtype=torch.float32, use_safetensors=True)
        return loaded.to(device), processor.from_pretrained(folder, local_files_only=True)
