"""Decoding latents a few rows at a time: a row takes far more memory in the autoencoder than in the denoiser."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers import DiffusionPipeline
from diffusers.models.autoencoders.vae import DecoderOutput
from torch import Tensor

from riebench.backbones.table import Backbone
from riebench.core.batches import fixed_batches, halving
from riebench.core.memory import free_memory

#: Rows that a GPU decodes at once at most: more gain nothing there. On a CPU all rows that fit are decoded at once.
MOST_ROWS = 8
SHARE = 0.8  # of the free memory, that decoding may take by what the family says of it


class ChunkedDecoding:
    """Stands in the place of an autoencoder's `decode`, and calls it with some of the rows at a time.

    Of pictures of one size the rows are chosen once, by what is free when the first are decoded, and halved for good
    where memory runs out: so the rows of two batches are computed alike, and the denoiser's batches stay as they are. A
    last, shorter chunk is filled up.
    """

    def __init__(self, decode: Callable[..., Any], row_bytes: Callable[[Tensor], int], what: str) -> None:
        """Takes the autoencoder's own function, and one from latents to the memory that decoding one row takes."""
        self._decode, self._row_bytes, self._what = decode, row_bytes, what
        self._rows: dict[tuple[int, ...], int] = {}

    def rows(self, latents: Tensor) -> int:
        """Returns how many rows of these latents are decoded at once."""
        size = tuple(latents.shape[1:])
        if size not in self._rows:
            fit = max(1, int(SHARE * free_memory(latents.device)) // self._row_bytes(latents))
            power = 1 << (fit.bit_length() - 1)  # so that a little more or less free memory changes nothing
            self._rows[size] = min(power, MOST_ROWS) if on_gpu(latents) else power
        return min(self._rows[size], len(latents))

    def __call__(self, latents: Tensor, return_dict: bool = True, **options: Any) -> DecoderOutput | tuple[Tensor]:
        """Returns what the autoencoder's own `decode` does. Raises `UserError` where not even one row fits."""

        def work(size: int) -> Tensor:
            chunks = []
            for numbers, count in fixed_batches(range(len(latents)), size):
                some = latents if numbers == list(range(len(latents))) else latents[numbers]
                chunks.append(self._decode(some, return_dict=False, **options)[0][:count])
            return chunks[0] if len(chunks) == 1 else torch.cat(chunks)

        asked = self.rows(latents)
        images, size = halving(work, asked, self._what)
        if size < asked:
            self._rows[tuple(latents.shape[1:])] = size
        return DecoderOutput(sample=images) if return_dict else (images,)


def on_gpu(latents: Tensor) -> bool:
    """Returns whether latents lie on a GPU."""
    return latents.device.type == "cuda"


def decode_in_chunks(pipeline: DiffusionPipeline, backbone: Backbone) -> None:
    """Has a pipeline's autoencoder decode in chunks from now on (`ChunkedDecoding`), once and not again."""
    vae = pipeline.vae
    if not isinstance(vae.decode, ChunkedDecoding):
        pixel_bytes, scale = backbone.family.decoding_bytes, pipeline.vae_scale_factor

        def row_bytes(latents: Tensor) -> int:
            height, width = latents.shape[-2:]
            return int(pixel_bytes * height * width * scale**2 * vae.dtype.itemsize / torch.float32.itemsize)

        vae.decode = ChunkedDecoding(vae.decode, row_bytes, f"decoding with {backbone.name}")
