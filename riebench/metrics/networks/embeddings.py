"""Embeddings of images and prompts, each computed once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import torch

from riebench.core.batches import fixed_batches
from riebench.edits.edit import strip_marks
from riebench.metrics.networks.base import BATCH_SIZE
from riebench.metrics.networks.remembered import Remembered

REMEMBERED = 4096  # prompts and images: an embedding is small


class ClipEncoder(Protocol):
    """An image and a text encoder with one space. Both return unit vectors."""

    def encode_images(self, images_bchw: torch.Tensor) -> torch.Tensor:
        """Returns the embeddings `[b, e]` of images in [0, 1]."""
        ...

    def encode_texts(self, texts: list[str]) -> torch.Tensor:
        """Returns the embeddings `[b, e]` of texts."""
        ...


class Embeddings:
    """One encoder's embeddings, each computed once, of the last 4096 prompts and images; images by their content.

    resize: brings images `[b, 3, h, w]` to the size that the encoder reads, for crops.
    """

    def __init__(
        self,
        encoder: ClipEncoder,
        device: torch.device | str = "cpu",
        keep_marks: bool = False,
        batch_size: int = BATCH_SIZE,
        resize: Callable[[torch.Tensor], torch.Tensor] = lambda images_bchw: images_bchw,
    ) -> None:
        self._encoder, self._keep_marks, self._batch_size, self._resize = encoder, keep_marks, batch_size, resize
        self._texts: dict[str, np.ndarray] = {}
        read = _Images(encoder)
        # crops apart, so that they do not push out the images that other metrics ask for next
        self._images, self._crops = (Remembered(read, device, batch_size, keep=REMEMBERED) for _ in range(2))

    def texts(self, prompts: list[str]) -> np.ndarray:
        """Returns float64 `[b, e]` of prompts, by default without their marks."""
        texts = prompts if self._keep_marks else [strip_marks(prompt) for prompt in prompts]
        new = [text for text in dict.fromkeys(texts) if text not in self._texts]
        for batch, count in fixed_batches(new, self._batch_size):
            self._texts.update(zip(batch[:count], _numpy(self._encoder.encode_texts(batch)[:count]), strict=True))
        found = np.stack([self._texts[text] for text in texts])
        for text in list(self._texts)[:-REMEMBERED]:
            del self._texts[text]
        return found

    def images(self, images_bchw: torch.Tensor) -> np.ndarray:
        """Returns float64 `[b, e]` of images in [0, 1]."""
        return _numpy(self._images(images_bchw)[0])

    def crops(self, crops: Sequence[torch.Tensor]) -> np.ndarray:
        """Returns float64 `[b, e]` of pieces of images, `[3, *, *]` of any sizes, each resized by itself."""
        return _numpy(self._crops(torch.cat([self._resize(crop[None]) for crop in crops]))[0])

    def forget(self) -> None:
        """Forgets all images and prompts."""
        self._texts.clear()
        self._images.forget()
        self._crops.forget()


class _Images:
    """An encoder that reads images in [0, 1] and returns (their embeddings `[b, e]`,)."""

    def __init__(self, encoder: ClipEncoder) -> None:
        self.encoder = encoder

    def __call__(self, images_bchw: torch.Tensor) -> tuple[torch.Tensor]:
        return (self.encoder.encode_images(images_bchw),)


def _numpy(embeddings_be: torch.Tensor) -> np.ndarray:
    return embeddings_be.detach().double().cpu().numpy()
