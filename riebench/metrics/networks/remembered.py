"""A network's values of images, each distinct image computed once, and always in batches of one size."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import torch
from torch.utils.weak import WeakTensorKeyDictionary

from riebench.core.batches import fixed_batches
from riebench.metrics.networks.base import BATCH_SIZE

REMEMBERED_IMAGES = 64  # kept for when they come back: those of the cases in hand

_contents: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def contents(images_bchw: torch.Tensor) -> list[bytes]:
    """Returns for each image what tells its pixels from others'. A tensor is hashed once, until it is written to."""
    version, keys = _contents.get(images_bchw, (None, []))
    if version != images_bchw._version:
        pixels = images_bchw.detach().float().cpu().contiguous().numpy()
        keys = [hashlib.sha256(repr(image.shape).encode() + image.tobytes()).digest() for image in pixels]
        _contents[images_bchw] = images_bchw._version, keys
    return keys


def known_contents(images_bchw: torch.Tensor, keys: Sequence[bytes]) -> None:
    """Says what tells each image's pixels from others', where that is known already."""
    _contents[images_bchw] = images_bchw._version, list(keys)


class Remembered:
    """A function of images `[b, 3, h, w]` in [0, 1] that remembers its values, a tuple of tensors with the batch first.

    A case's original image is the reference of every method and subset, and the intervened image is read by several
    metrics: here each is computed when it is first seen. A last, shorter batch is padded, so that an image's values do
    not depend on the others in its batch. The images used longest ago are forgotten. A function that holds a network
    is an object with the network among its attributes, so that a twin finds it (`riebench.generation.sharing`).
    """

    def __init__(
        self,
        function: Callable[[torch.Tensor], tuple[torch.Tensor, ...]],
        device: torch.device | str = "cpu",
        batch_size: int = BATCH_SIZE,
        keep: int | None = None,
    ) -> None:
        """keep: how many images are known at least as long as no other is asked for; `REMEMBERED_IMAGES` for None."""
        self._function, self._device, self._batch_size, self._keep = function, device, batch_size, keep
        self._known: dict[bytes, tuple[torch.Tensor, ...]] = {}

    @torch.no_grad()
    def __call__(self, images_bchw: torch.Tensor) -> tuple[torch.Tensor, ...]:
        keys = contents(images_bchw)
        new = {key: row for row, key in enumerate(keys) if key not in self._known}
        for batch, count in fixed_batches(list(new.items()), self._batch_size):
            rows = images_bchw[[row for _, row in batch]].to(self._device, torch.float32)
            values = self._function(rows)
            self._known |= {key: tuple(v[i].clone() for v in values) for i, (key, _) in enumerate(batch[:count])}
        found = [self._known[key] for key in keys]
        self._known |= {key: self._known.pop(key) for key in dict.fromkeys(keys)}  # to the end: used just now
        keep = REMEMBERED_IMAGES if self._keep is None else self._keep
        for key in list(self._known)[: -max(len(set(keys)), keep)]:
            del self._known[key]
        return tuple(torch.stack(parts) for parts in zip(*found, strict=True))

    def forget(self) -> None:
        """Forgets all images."""
        self._known.clear()
