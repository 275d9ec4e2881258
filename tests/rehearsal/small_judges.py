"""The networks that score: narrow, with random weights, in the files of the true repositories.

What open_clip's models are made of stands in open_clip and not in their files, so `narrow_open_clip` puts narrow ones
there under the true names.
"""

from __future__ import annotations

from pathlib import Path

import open_clip
import pytest
import timm
import transformers
from open_clip import factory
from rehearsal.small_pipelines import as_before_five
from rehearsal.small_tokenizers import write_json
from safetensors.torch import save_file
from siglip_tokenizer import write_siglip_tokenizer

OPENAI, SIGLIP2 = "ViT-L-14-quickgelu", "ViT-B-16-SigLIP2"


@timm.models.register_model
def narrow_siglip_224(pretrained: bool = False, num_classes: int = 0, global_pool: str = "map", **_unused: object):
    """What timm calls vit_base_patch16_siglip_224, narrower."""
    shape = {"img_size": 224, "patch_size": 16, "embed_dim": 32, "depth": 2, "num_heads": 2, "class_token": False}
    return timm.models.VisionTransformer(**shape, num_classes=num_classes, global_pool=global_pool)


def narrow_open_clip(patch: pytest.MonkeyPatch) -> None:
    """Has open_clip make narrow models of the two names that riebench loads; all else stays as it is there."""
    _narrow(patch, OPENAI, {"layers": 2, "width": 64}, 32)  # of heads of 64 channels
    _narrow(patch, SIGLIP2, {"timm_model_name": narrow_siglip_224.__name__}, 8)  # for 256,000 words


def _narrow(patch: pytest.MonkeyPatch, name: str, vision: dict, text_width: int) -> None:
    true = open_clip.get_model_config(name)
    text = {"width": text_width, "heads": 2, "layers": 2}
    config = {"embed_dim": 32, "vision_cfg": true["vision_cfg"] | vision, "text_cfg": true["text_cfg"] | text}
    patch.setitem(factory._MODEL_CONFIGS, name, true | config)


def openai_clip(folder: Path) -> None:
    _save_open_clip(folder, OPENAI)


def siglip2(folder: Path) -> None:
    write_siglip_tokenizer(folder)
    _save_open_clip(folder, SIGLIP2)
    looks = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "squash"}
    write_json(
        folder / "open_clip_config.json", {"model_cfg": open_clip.get_model_config(SIGLIP2), "preprocess_cfg": looks}
    )


def _save_open_clip(folder: Path, name: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        narrow_open_clip(patch)
        model = open_clip.create_model(name)
    tensors = {key: value.contiguous() for key, value in model.state_dict().items()}
    save_file(tensors, folder / "open_clip_model.safetensors", {"format": "pt"})


def dino(folder: Path) -> None:
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    transformers.ViTModel(transformers.ViTConfig(**shape, patch_size=8)).save_pretrained(folder)
    as_before_five(folder / "config.json")
