"""tinyworld's CLIP: an ordinary open_clip model folder, small, trained on the renderer's pictures and captions."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import open_clip
import torch
from transformers import CLIPTokenizer

from riebench.core.files import data_folder, read_json
from riebench.tinyworld.captions import CONTEXT_LENGTH
from riebench.tinyworld.weights import load_weights, reading

WEIGHTS_FILE, CONFIG_FILE = "open_clip_model.safetensors", "open_clip_config.json"
MEAN, STD = 0.5, 0.5  # of each colour


@dataclass(frozen=True)
class Clip:
    """A CLIP model with its tokenizer. The embeddings are unit vectors, so that a dot product is a cosine."""

    model: open_clip.CLIP
    tokenizer: CLIPTokenizer

    @torch.no_grad()
    def encode_images(self, images_bchw: torch.Tensor) -> torch.Tensor:
        """Returns the unit embeddings `[b, e]` of images `[b, 3, 64, 64]` in [0, 1]."""
        return self.model.encode_image((images_bchw - MEAN) / STD, normalize=True)

    @torch.no_grad()
    def encode_texts(self, texts: list[str]) -> torch.Tensor:
        """Returns the unit embeddings `[b, e]` of texts. Whatever is beyond 24 tokens is cut off."""
        ids = tokenize(self.tokenizer, texts).to(self.model.positional_embedding.device)
        return self.model.encode_text(ids, normalize=True)


def tokenize(tokenizer: CLIPTokenizer, texts: list[str]) -> torch.Tensor:
    """Returns token ids, int64 `[b, 24]`. Whatever is beyond 24 tokens is cut off."""
    return tokenizer(
        texts, padding="max_length", max_length=CONTEXT_LENGTH, truncation=True, return_tensors="pt"
    ).input_ids


def load_clip(device: torch.device | str = "cpu", folder: Path | None = None) -> Clip:
    """Returns the shipped CLIP, or the one saved in `folder`, as float32. Raises `UserError` naming a bad file."""
    folder = folder or data_folder() / "tinyworld" / "clip"
    config = read_json(folder / CONFIG_FILE, "the configuration of tinyworld's CLIP")
    with reading(folder / CONFIG_FILE):
        model = open_clip.CLIP(**config["model_cfg"])
    with reading(folder / "vocab.json"):
        tokenizer = CLIPTokenizer.from_pretrained(folder)
    return Clip(load_weights(model, folder / WEIGHTS_FILE, device), tokenizer)
