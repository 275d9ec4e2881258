"""What people have of a model beside the folder of a pipeline: single files, LoRAs, parts. Imports no torch."""

from __future__ import annotations

import json
import re
from pathlib import Path

from safetensors import SafetensorError, safe_open

from riebench.backbones.family import Family
from riebench.core.errors import UserError

INDEX = "model_index.json"  # which the folder of a pipeline has
SINGLE_FILES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")
LORA_FILES = ("pytorch_lora_weights", "adapter_model")  # as diffusers and peft call them
#: In the names of a LoRA's tensors, as diffusers, peft, kohya and LyCORIS write them.
LORA_TENSOR = re.compile(r"lora_|[._]lora\.|hada_w|lokr_w|dora_scale")


def refuse_other_files(name: str, path: Path, family: Family) -> None:
    """Raises `UserError` where a backbone's `folder` is a single file, a LoRA or one part of a pipeline, and says how
    the folder of a pipeline is made of it. name: of the backbone. Anything else passes."""
    if path.is_file():
        raise _lora(name, path, family) if is_lora(path) else _single_file(name, path, family)
    if not path.is_dir() or (path / INDEX).is_file():
        return
    files = sorted(file for file in path.iterdir() if file.suffix in SINGLE_FILES and file.is_file())
    if any(is_lora(file) for file in files):
        raise _lora(name, path, family)
    if kind := _class_of_part(path):
        raise UserError(
            f"the folder of {name}, {path}, holds one part of a pipeline, a {kind}",
            remedy="put it into the folder of the pipeline that it belongs to, in the place of its own, and give that",
        )
    if len(files) == 1:
        raise _single_file(name, files[0], family)


def is_lora(path: Path) -> bool:
    """Returns whether a file holds a LoRA, by the names of its tensors or, where they cannot be read, its own."""
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="np") as file:
                return any(LORA_TENSOR.search(name) for name in file.keys())  # noqa: SIM118
        except (OSError, SafetensorError):
            return False
    return path.stem in LORA_FILES


def fusing(family: Family, base: str, lora: str) -> str:
    """Returns the two lines of Python that make the folder of a pipeline with a LoRA in it. base: folder or repository
    of the model it was made for."""
    kind = family.pipeline.partition(":")[2]
    return (
        f"fuse it in Python: `pipeline = diffusers.{kind}.from_pretrained({base!r});"
        f" pipeline.load_lora_weights({lora!r})` and `pipeline.fuse_lora(); pipeline.unload_lora_weights();"
        f" pipeline.save_pretrained('fused')` (which needs `pip install peft`), then give `folder: fused`"
    )


def _lora(name: str, path: Path, family: Family) -> UserError:
    return UserError(
        f"the folder of {name}, {path}, is a LoRA, which changes a model and is none itself",
        remedy=fusing(family, "BASE", str(path)) + ", where BASE is the model that it was made for",
    )


def _single_file(name: str, path: Path, family: Family) -> UserError:
    kind, folder = family.pipeline.partition(":")[2], str(path.with_suffix(""))
    return UserError(
        f"the folder of {name}, {path}, is a single file, not the folder of a pipeline",
        remedy=f"make a folder of it with two lines of Python: `pipeline = diffusers.{kind}.from_single_file"
        f"({str(path)!r})` and `pipeline.save_pretrained({folder!r})`, then give `folder: {folder}`",
    )


def _class_of_part(folder: Path) -> str:
    """Returns the class of the model that `save_pretrained` wrote into a folder; "" where it holds none."""
    try:
        found = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError):
        return ""
    kind = found.get("_class_name") if isinstance(found, dict) else None
    return kind if isinstance(kind, str) else ""
