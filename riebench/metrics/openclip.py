"""A CLIP of open_clip as an encoder of images and texts."""

from __future__ import annotations

import open_clip
import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as TF

from riebench.errors import UserError


def preprocess(images_bchw: torch.Tensor, size: int) -> torch.Tensor:
    """OpenAI's preparation of images in [0, 1]: shorter side to `size` (bicubic), centre crop, normalisation."""
    resized = TF.resize(images_bchw, [size], InterpolationMode.BICUBIC, antialias=True).clamp(0, 1)
    return TF.normalize(
        TF.center_crop(resized, [size, size]), list(open_clip.OPENAI_DATASET_MEAN), list(open_clip.OPENAI_DATASET_STD)
    )


class OpenClip:
    """An encoder by the name "architecture/weights", such as "ViT-L-14-quickgelu/openai", in float32.

    Raises `UserError` when the weights can neither be found nor downloaded.
    """

    def __init__(self, name: str, device: torch.device | str = "cpu") -> None:
        architecture, _, weights = name.partition("/")
        try:
            model = open_clip.create_model(architecture, pretrained=weights, device=device)
        except (OSError, RuntimeError, ValueError) as error:
            raise UserError(
                f"CLIP {name} cannot be loaded: {str(error).splitlines()[0]}",
                remedy="for SDXL's judge run `riebench fetch clip-vit-l-14`, where there is a network",
            ) from error
        self._model = model.eval().requires_grad_(False)
        self._tokenizer, self._device = open_clip.get_tokenizer(architecture), device
        self._size = (
            model.visual.image_size[0] if isinstance(model.visual.image_size, tuple) else model.visual.image_size
        )

    @torch.no_grad()
    def encode_images(self, images_bchw: torch.Tensor) -> torch.Tensor:
        """Unit embeddings `[b, e]` of images `[b, 3, h, w]` in [0, 1]."""
        return self._model.encode_image(preprocess(images_bchw.to(self._device), self._size), normalize=True)

    @torch.no_grad()
    def encode_texts(self, texts: list[str]) -> torch.Tensor:
        """Unit embeddings `[b, e]` of texts, cut off at the model's context."""
        return self._model.encode_text(self._tokenizer(texts).to(self._device), normalize=True)
