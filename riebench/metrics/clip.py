"""Embeddings of images and prompts, each computed once, and what the metrics of a CLIP have in common."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar, Literal, Protocol

import numpy as np
import torch

from riebench.core.batches import fixed_batches
from riebench.edits.edit import strip_marks
from riebench.metrics import ScoreBatch
from riebench.metrics.remembered import BATCH_SIZE, Remembered
from riebench.metrics.shared import SharedMetric

REMEMBERED = 4096  # prompts and images: an embedding is small
SIDES = ("original", "edited")
Side = Literal["original", "edited"]


class ClipEncoder(Protocol):
    """An image and a text encoder with one space. Both return unit vectors."""

    def encode_images(self, images_bchw: torch.Tensor) -> torch.Tensor:
        """`[b, e]` of images in [0, 1]."""
        ...

    def encode_texts(self, texts: list[str]) -> torch.Tensor:
        """`[b, e]` of texts."""
        ...


class Embeddings:
    """One encoder's embeddings, each computed once, of the last 4096 prompts and images; images by their content.

    resize: images `[b, 3, h, w]` to the size that the encoder reads, for crops.
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
        # crops apart, so that they do not push out the images that other metrics ask for next
        self._images, self._crops = (
            Remembered(lambda images: (encoder.encode_images(images),), device, batch_size, keep=REMEMBERED)
            for _ in range(2)
        )

    def texts(self, prompts: list[str]) -> np.ndarray:
        """Float64 `[b, e]` of prompts, by default without their marks."""
        texts = prompts if self._keep_marks else [strip_marks(prompt) for prompt in prompts]
        new = [text for text in dict.fromkeys(texts) if text not in self._texts]
        for batch, count in fixed_batches(new, self._batch_size):
            self._texts.update(zip(batch[:count], _numpy(self._encoder.encode_texts(batch)[:count]), strict=True))
        found = np.stack([self._texts[text] for text in texts])
        for text in list(self._texts)[:-REMEMBERED]:
            del self._texts[text]
        return found

    def images(self, images_bchw: torch.Tensor) -> np.ndarray:
        """Float64 `[b, e]` of images in [0, 1]."""
        return _numpy(self._images(images_bchw)[0])

    def crops(self, crops: Sequence[torch.Tensor]) -> np.ndarray:
        """Float64 `[b, e]` of pieces of images, `[3, *, *]` of any sizes, each resized by itself."""
        return _numpy(self._crops(torch.cat([self._resize(crop[None]) for crop in crops]))[0])

    def forget(self) -> None:
        """Forgets all images and prompts."""
        self._texts.clear()
        self._images.forget()
        self._crops.forget()


class ClipMetric(SharedMetric):
    """A metric of one network of images and texts, which bears the network's name where it is not its own."""

    uses: ClassVar[tuple[str, ...]] = ("clip",)
    base: str
    """Its name in the registry."""
    bounds: ClassVar[tuple[float, float]] = (-1.0, 1.0)

    @property
    def name(self) -> str:
        other = self.models.clip_name if self.uses == ("clip",) else ""
        return f"{self.base}@{other}" if other else self.base

    @property
    def embeddings(self) -> Embeddings:
        return getattr(self.models, self.uses[0])


def prompts(batch: ScoreBatch, side: Side) -> list[str]:
    return [getattr(edit, f"{side}_prompt") for edit in batch.edits]


def _numpy(embeddings_be: torch.Tensor) -> np.ndarray:
    return embeddings_be.detach().double().cpu().numpy()
