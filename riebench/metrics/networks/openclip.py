"""A model of open_clip as an encoder of images and texts, and what is known of one by its name alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import open_clip
import torch
from huggingface_hub import try_to_load_from_cache
from open_clip.tokenizer import HFTokenizer
from open_clip.transform import PreprocessCfg
from PIL import Image
from torch.nn import functional as F
from torchvision.transforms.v2 import functional as TF

from riebench.core.checkpoints import fetched
from riebench.core.errors import UserError, did_you_mean
from riebench.core.hub import Weights, weights_folder
from riebench.core.memory import is_out_of_memory
from riebench.core.pictures import from_array, rounded

#: What the published code asks open_clip for by name. It runs GELU on weights that were trained with QuickGELU; older
#: versions of open_clip ran QuickGELU under the same name.
PUBLISHED_NAME = "ViT-L-14/openai"
HUB_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")  # in the order in which open_clip looks


@dataclass(frozen=True)
class Preprocessing:
    """A model's own preparation of images, as open_clip does it: Pillow resizes them, in 8 bits.

    torch's resize is up to six grey levels off, since Pillow rounds to 8 bits after the rows and after the columns.
    """

    size: tuple[int, int]
    """Height and width that the model reads."""
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: Literal["bicubic", "bilinear"]
    resize_mode: Literal["shortest", "longest", "squash"]
    """shortest: the shorter side is fitted and the middle cut out; longest: the longer one, and the rest filled up;
    squash: both, whatever the image's shape."""
    fill_color: int
    """The grey of what is filled up, out of 255."""

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Preprocessing:
        """Returns what open_clip's `preprocess_cfg` says; what it leaves out is open_clip's default."""
        words = asdict(PreprocessCfg()) | {key: value for key, value in config.items() if value is not None}
        size = words["size"]
        mean, std = ((words[key],) * 3 if isinstance(words[key], float) else words[key] for key in ("mean", "std"))
        return cls(
            (size, size) if isinstance(size, int) else tuple(size),
            tuple(mean),
            tuple(std),
            words["interpolation"],
            words["resize_mode"],
            words["fill_color"],
        )

    def resize(self, images_bchw: torch.Tensor) -> torch.Tensor:
        """Returns images in [0, 1] of the size that the model reads, of 8 bits; those that have it are returned as they
        are."""
        if tuple(images_bchw.shape[-2:]) == self.size:
            return images_bchw
        fitted, filtered = self._fitted(*images_bchw.shape[-2:]), Image.Resampling[self.interpolation.upper()]
        arrays = rounded(images_bchw)[1]
        pictures = [Image.fromarray(array_hwc).resize(fitted[::-1], filtered) for array_hwc in arrays]
        resized = torch.stack([from_array(np.array(picture)) for picture in pictures]).to(images_bchw)
        missing = [max(whole - there, 0) for whole, there in zip(self.size, resized.shape[-2:], strict=True)]
        (top, bottom), (left, right) = ((gap // 2, gap - gap // 2) for gap in missing)
        return TF.center_crop(F.pad(resized, (left, right, top, bottom), value=self.fill_color / 255), list(self.size))

    def __call__(self, images_bchw: torch.Tensor) -> torch.Tensor:
        """Returns what the model reads of images in [0, 1]."""
        return TF.normalize(self.resize(images_bchw), list(self.mean), list(self.std))

    def __str__(self) -> str:
        whole = {"shortest": "shorter side, centre crop", "longest": "longer side, filled up", "squash": "both sides"}
        mean, std = (" ".join(f"{value:.8g}" for value in values) for values in (self.mean, self.std))
        return (
            f"{self.interpolation}, by Pillow, to {self.size[0]} x {self.size[1]} ({whole[self.resize_mode]}), "
            f"mean {mean}, std {std}"
        )

    def _fitted(self, height: int, width: int) -> list[int]:
        """Returns height and width of an image after resizing, before it is cut or filled up."""
        if self.resize_mode == "squash":
            return list(self.size)
        if self.resize_mode == "shortest" and self.size[0] == self.size[1]:
            shorter, longer = self.size[0], int(self.size[0] * max(height, width) / min(height, width))
            return [shorter, longer] if height <= width else [longer, shorter]
        ratios = height / self.size[0], width / self.size[1]
        ratio = max(ratios) if self.resize_mode == "longest" else min(ratios)
        return [max(round(height / ratio), 1), max(round(width / ratio), 1)]


class Encoder:
    """An encoder by the name "architecture/weights", such as "ViT-L-14-quickgelu/openai", in float32."""

    def __init__(
        self,
        name: str,
        device: torch.device | str = "cpu",
        *,
        fetch_name: str = "",
        weights: Sequence[Weights] = (),
        tokens: Mapping[str, Sequence[int]] = MappingProxyType({}),
    ) -> None:
        """fetch_name, weights: what `riebench fetch` calls the files and which they are, the weights first; without
        them open_clip looks for its own, and downloads them. tokens: what the tokenizer must make of some texts: all of
        the model's context, padding too.

        Raises `UserError` with the remedy when the weights cannot be had or lack a tensor, and for another tokenizer.
        """
        architecture, _, tag = name.partition("/")
        if weights:
            folder = weights_folder(fetch_name, weights[0])
            with fetched(fetch_name, folder):  # no tensor may lack, and none be of another shape: open_clip is strict
                model = open_clip.create_model(architecture, pretrained=str(folder / weights[0].files[0]), device="cpu")
                self._tokenizer = _tokenizer(architecture, folder)
            self.preprocessing = model_preprocessing(name)
        else:
            try:
                model = open_clip.create_model(architecture, pretrained=tag, device="cpu")
                self._tokenizer = open_clip.get_tokenizer(architecture)
            except (OSError, RuntimeError, ValueError) as error:
                if is_out_of_memory(error):
                    raise
                raise UserError(
                    f"CLIP {name} cannot be loaded: {str(error).splitlines()[0]}",
                    remedy="try again, where there is a network",
                ) from error
            self.preprocessing = Preprocessing.from_config(open_clip.get_model_preprocess_cfg(model))
        self._model, self._device = model.to(device).eval().requires_grad_(False), device
        for text, expected in tokens.items():
            found = self._tokenizer([text])[0].tolist()
            if found != list(expected):
                raise UserError(
                    f"the tokenizer of {name} makes {_short(found)} of {text!r}, where the model was trained on"
                    f" {_short(expected)}",
                    remedy="`pip install -U riebench`, which brings versions of transformers and open_clip that do",
                )

    @torch.no_grad()
    def encode_images(self, images_bchw: torch.Tensor) -> torch.Tensor:
        """Returns the unit embeddings `[b, e]` of images `[b, 3, h, w]` in [0, 1]."""
        return self._model.encode_image(self.preprocessing(images_bchw.to(self._device)), normalize=True)

    @torch.no_grad()
    def encode_texts(self, texts: list[str]) -> torch.Tensor:
        """Returns the unit embeddings `[b, e]` of texts, cut off at the model's context."""
        return self._model.encode_text(self._tokenizer(texts).to(self._device), normalize=True)


def _tokenizer(architecture: str, folder: Path) -> Callable[[list[str]], torch.Tensor]:
    """Returns an architecture's tokenizer, with the files of a folder where it has some. It fills up on the right: so
    SigLIP 2 was trained, and its files do not always say so."""
    text = open_clip.get_model_config(architecture)["text_cfg"]
    if "hf_tokenizer_name" not in text:
        return open_clip.get_tokenizer(architecture)
    options = text.get("tokenizer_kwargs", {})
    return HFTokenizer(str(folder), context_length=text["context_length"], padding_side="right", **options)


def _short(tokens: Sequence[int]) -> str:
    """Returns tokens without the many that are equal at the end."""
    whole = list(tokens)
    while len(whole) > 1 and whole[-1] == whole[-2]:
        whole.pop()
    more = len(tokens) - len(whole)
    return f"{whole}{f' and {more} more of the last' if more else ''}"


def check_model(name: str) -> None:
    """Raises `UserError` for a name that is not "architecture/weights" out of open_clip's list of pretrained models,
    and for an architecture with another activation than its weights were trained with, but for the published one. Loads
    nothing."""
    architecture, _, weights = name.partition("/")
    config = open_clip.get_pretrained_cfg(architecture, weights)
    if not config:
        known = ["/".join(pair) for pair in open_clip.list_pretrained()]
        raise UserError(
            f"open_clip has no model {name!r}{did_you_mean(name, known)}",
            remedy="write architecture/weights, out of `open_clip.list_pretrained()`",
        )
    same = not config.get("quick_gelu", False) or open_clip.get_model_config(architecture).get("quick_gelu", False)
    if not same and name != PUBLISHED_NAME:
        raise UserError(
            f"{name} runs another activation than its weights were trained with",
            remedy=f"use {architecture}-quickgelu/{weights}",
        )


def model_preprocessing(name: str) -> Preprocessing:
    """Returns what a model does to images, as open_clip's list of pretrained models says. Loads nothing.

    Raises `UserError` as `check_model` does.
    """
    check_model(name)
    architecture, _, weights = name.partition("/")
    size = open_clip.get_model_config(architecture)["vision_cfg"].get("image_size", PreprocessCfg.size)
    return Preprocessing.from_config({**open_clip.get_pretrained_cfg(architecture, weights), "size": size})


def weights_file(name: str) -> Path | None:
    """Returns where a model's weights lie in the Hub's cache on this machine, None where they do not."""
    architecture, _, weights = name.partition("/")
    # "owner/name/file", or "owner/name/" for open_clip's own file names
    repo, _, file = open_clip.get_pretrained_cfg(architecture, weights).get("hf_hub", "").rpartition("/")
    found = (try_to_load_from_cache(repo, each) for each in ([file] if file else HUB_FILES) if repo)
    return next((Path(path) for path in found if isinstance(path, str)), None)
