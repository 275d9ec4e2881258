"""CLIP cosines of the intervened image with prompts and reference images, and of its change with the prompt's
(protocol §7)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol

import numpy as np
import torch

from riebench.batches import fixed_batches
from riebench.edits import strip_marks
from riebench.metrics import METRICS, ScoreBatch
from riebench.metrics.remembered import BATCH_SIZE, Remembered

if TYPE_CHECKING:
    from riebench.metrics.models import ScoringModels

REMEMBERED_TEXTS = 4096

#: L2 norm up to which the difference of two unit embeddings is rounding and has no direction. tinyworld's CLIP, in
#: float32, moves one picture by at most 3e-7 when other pictures share its batch, and by 8e-6 or more when a single
#: pixel changes by one of 255 levels; the weakest interventions of a run move it by 4e-3.
LEAST_CHANGE = 1e-5


class ClipEncoder(Protocol):
    """An image and a text encoder with one space. Both return unit vectors."""

    def encode_images(self, images_bchw: torch.Tensor) -> torch.Tensor:
        """`[b, e]` of images in [0, 1]."""
        ...

    def encode_texts(self, texts: list[str]) -> torch.Tensor:
        """`[b, e]` of texts."""
        ...


class Embeddings:
    """One encoder's embeddings, each computed once: of images by content, of prompts for the last 4096."""

    def __init__(
        self,
        encoder: ClipEncoder,
        device: torch.device | str = "cpu",
        keep_marks: bool = False,
        batch_size: int = BATCH_SIZE,
    ) -> None:
        self._encoder, self._keep_marks, self._batch_size = encoder, keep_marks, batch_size
        self._texts: dict[str, np.ndarray] = {}
        self._images = Remembered(lambda images: (encoder.encode_images(images),), device, batch_size)

    def texts(self, prompts: list[str]) -> np.ndarray:
        """Float64 `[b, e]` of prompts, by default without their marks."""
        texts = prompts if self._keep_marks else [strip_marks(prompt) for prompt in prompts]
        new = [text for text in dict.fromkeys(texts) if text not in self._texts]
        for batch, count in fixed_batches(new, self._batch_size):
            self._texts.update(zip(batch[:count], _numpy(self._encoder.encode_texts(batch)[:count]), strict=True))
        found = np.stack([self._texts[text] for text in texts])
        for text in list(self._texts)[:-REMEMBERED_TEXTS]:
            del self._texts[text]
        return found

    def images(self, images_bchw: torch.Tensor) -> np.ndarray:
        """Float64 `[b, e]` of images in [0, 1]."""
        return _numpy(self._images(images_bchw)[0])

    def forget(self) -> None:
        """Forgets all images and prompts."""
        self._texts.clear()
        self._images.forget()


def _numpy(embeddings_be: torch.Tensor) -> np.ndarray:
    return embeddings_be.detach().double().cpu().numpy()


@dataclass(frozen=True)
class ClipScore:
    """Cosine of the intervened image's embedding with that of one side's prompt or image."""

    embeddings: Embeddings
    kind: Literal["text", "image"]
    side: Literal["original", "edited"]
    higher_is_better: ClassVar[bool] = True
    bounds: ClassVar[tuple[float, float]] = (-1.0, 1.0)

    @property
    def name(self) -> str:
        return f"clip_{self.kind}_{self.side}"

    @property
    def summary(self) -> str:
        return METRICS.summary(self.name)

    def score(self, batch: ScoreBatch) -> np.ndarray:
        if self.kind == "text":
            reference = self.embeddings.texts([getattr(edit, f"{self.side}_prompt") for edit in batch.edits])
        else:
            reference = self.embeddings.images(getattr(batch, self.side))
        return (self.embeddings.images(batch.intervened) * reference).sum(axis=1)


class ClipDirectional:
    """Cosine of E(intervened) - E(original) with T(edited) - T(original), E and T the unit embeddings of images and
    prompts; NaN where either change is no longer than `LEAST_CHANGE`, as it is for the original image itself.

    Gal et al., "StyleGAN-NADA: CLIP-Guided Domain Adaptation of Image Generators", 2021 (arXiv 2108.00946); as a
    score of edits Brooks et al., "InstructPix2Pix", 2022 (arXiv 2211.09800).
    """

    name = "clip_directional"
    summary = METRICS.summary(name)
    higher_is_better = True
    bounds = (-1.0, 1.0)

    def __init__(self, models: ScoringModels) -> None:
        self._embeddings = models.clip

    def score(self, batch: ScoreBatch) -> np.ndarray:
        embed_images, embed_texts = self._embeddings.images, self._embeddings.texts
        image_be = embed_images(batch.intervened) - embed_images(batch.original)
        text_be = embed_texts([e.edited_prompt for e in batch.edits]) - embed_texts(
            [e.original_prompt for e in batch.edits]
        )
        image_b, text_b = (np.linalg.norm(change_be, axis=1) for change_be in (image_be, text_be))
        defined = (image_b > LEAST_CHANGE) & (text_b > LEAST_CHANGE)
        cosine = (image_be * text_be).sum(axis=1)
        return np.divide(cosine, image_b * text_b, out=np.full(len(cosine), np.nan), where=defined)


def text_edited(models: ScoringModels) -> ClipScore:
    return ClipScore(models.clip, "text", "edited")


def text_original(models: ScoringModels) -> ClipScore:
    return ClipScore(models.clip, "text", "original")


def image_edited(models: ScoringModels) -> ClipScore:
    return ClipScore(models.clip, "image", "edited")


def image_original(models: ScoringModels) -> ClipScore:
    return ClipScore(models.clip, "image", "original")
