"""Pipelines from folders onto a device in a precision."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

import torch
from diffusers import DiffusionPipeline, ModelMixin
from diffusers.utils import logging as diffusers_logging
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers.utils import logging as transformers_logging

from riebench.backbones.folders import backbone_folder, fetch_name, is_shipped, vae_folder
from riebench.backbones.pipeline_checks import refuse_scheduler, refuse_schedulers_of, refuse_size
from riebench.backbones.table import DTYPES, Backbone
from riebench.core.checkpoints import Incomplete, load_whole, remedy_for
from riebench.core.errors import UserError, did_you_mean
from riebench.core.memory import is_out_of_memory, room_for
from sae_models.tensors import dtype_name

VARIANT = "fp16"  # as diffusers calls half-precision files: `diffusion_pytorch_model.fp16.safetensors`


def choose_device(name: str) -> torch.device:
    """Returns the torch device of "auto", "cpu" or "cuda". Raises `UserError` for cuda where there is none."""
    if name not in ("auto", "cpu", "cuda"):
        raise UserError(
            f"unknown device {name!r}{did_you_mean(name, ('auto', 'cpu', 'cuda'))}", remedy="use auto, cpu or cuda"
        )
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("this machine has no CUDA device that torch can use", remedy="use --device cpu")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def choose_dtype(backbone: Backbone, device: torch.device, asked: str = "auto") -> torch.dtype:
    """Returns what a backbone's denoiser and text encoders are computed in.

    asked: out of `DTYPES`; "auto" takes the backbone's own, and where that is "auto" too, float16 on a GPU and float32
    on a CPU. Raises `UserError` for another name.
    """
    if asked not in DTYPES:
        raise UserError(f"unknown dtype {asked!r}{did_you_mean(asked, DTYPES)}", remedy=f"use {', '.join(DTYPES)}")
    name = asked if asked != "auto" else backbone.dtype
    if name == "auto":
        name = "float32" if device.type == "cpu" else "float16"
    return getattr(torch, name)


def weights_sha256(*modules: nn.Module) -> str:
    """Returns the sha256 over the names and bytes of the modules' weights, in hex."""
    digest = hashlib.sha256()
    for module in modules:
        for name, value in module.state_dict().items():
            digest.update(name.encode())
            digest.update(value.cpu().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def load_pipeline(backbone: Backbone, device: torch.device, dtype: torch.dtype) -> DiffusionPipeline:
    """Returns the backbone's pipeline on a device, with the scheduler that lies with it; nothing is downloaded.

    dtype: of the denoiser and the text encoders, from `choose_dtype`. A pipeline's own autoencoder is in what its
    family says, and takes latents of any type; one of `riebench.backbones.released.VAES` runs in `dtype`. Half
    precision is read from half-precision files where the folder has them. Raises `UserError` when weights are missing,
    broken or not finite, or there is no room for them, and as `refuse_scheduler` and `refuse_size` do.
    """
    name = dtype_name(dtype)
    with room_for(backbone.name, device, backbone.gigabytes(name), "free some, use dtype float16, or another device"):
        pipeline = _read_pipeline(backbone, dtype).to(device)
    _refuse_not_finite(backbone, pipeline, name)
    return pipeline


def _refuse_not_finite(backbone: Backbone, pipeline: DiffusionPipeline, dtype: str) -> None:
    """Raises `UserError` naming the first tensor that holds NaN or infinite values."""
    parts = {part: module for part, module in pipeline.components.items() if isinstance(module, nn.Module)}
    for part, module in parts.items():
        for name, value in module.state_dict().items():
            if value.is_floating_point() and value.numel() and not _is_finite(value):
                raise UserError(
                    f"the weights of {backbone.name} hold NaN or infinite values: {name} of its {part}",
                    remedy=_remedy(backbone, None, dtype),
                )


def _is_finite(value: torch.Tensor) -> bool:
    """Returns whether all values are finite; reads them once, and makes no copy."""
    return bool(torch.isfinite(torch.stack(torch.aminmax(value))).all())


def _read_pipeline(backbone: Backbone, dtype: torch.dtype) -> DiffusionPipeline:
    """Returns the pipeline in the host's memory. Raises `UserError` when weights are missing or broken."""
    folder, other = backbone_folder(backbone, dtype_name(dtype)), vae_folder(backbone)
    family = backbone.family
    refuse_schedulers_of(backbone, folder)
    variant = _variant(folder, dtype, family.denoiser)
    try:
        with quiet():
            own = family.autoencoder_dtype
            types = {"default": dtype, "vae": getattr(torch, own) if own else dtype}
            given = {"vae": _load_model(_named(family.autoencoder), other, dtype)} if other else {}
            for part, kind in _models(folder).items():
                if part not in given:
                    given[part] = _load_model(kind, folder / part, types.get(part, dtype), variant)
            pipeline = _load(_named(family.pipeline), folder, types, variant=variant, **family.options, **given)
    except Incomplete as error:
        name = backbone.vae if other and str(other) in str(error) else fetch_name(backbone, dtype_name(dtype))
        hub = other if backbone.vae == name else folder
        raise UserError(
            f"{backbone.name} cannot be loaded: {error}",
            remedy=remedy_for(name, hub) if backbone.weights else _remedy(backbone, None, ""),
        ) from error
    except Exception as error:
        if is_out_of_memory(error):
            raise
        file, what = _find_broken(folder, variant) or (other and _find_broken_part(other, None)) or (None, str(error))
        raise UserError(
            f"the weights of {backbone.name} cannot be loaded: {f'{file} {what}' if file else what}",
            remedy=_remedy(backbone, file, dtype_name(dtype)),
        ) from error
    refuse_scheduler(backbone, pipeline.scheduler)
    refuse_size(backbone, pipeline)
    pipeline.set_progress_bar_config(disable=True)  # of this pipeline alone
    family.prepare(pipeline, other is not None)
    return pipeline


def _named(place: str) -> type:
    """Returns the class at "module:class"."""
    module, _, name = place.partition(":")
    return getattr(import_module(module), name)


@contextmanager
def quiet() -> Iterator[None]:
    """Silences the bars of diffusers and transformers in here, and leaves them as they were afterwards."""
    parts = (diffusers_logging, transformers_logging)
    shown = [part.is_progress_bar_enabled() for part in parts]
    for part in parts:
        part.disable_progress_bar()
    try:
        yield
    finally:
        for part, was in zip(parts, shown, strict=True):
            if was:
                part.enable_progress_bar()


def _models(folder: Path) -> dict[str, type]:
    """Returns the parts of a pipeline that have weights, by the name of their folder, with their classes."""
    found = {}
    for part, value in json.loads((folder / "model_index.json").read_text()).items():
        library, name = value if isinstance(value, list) else (None, None)
        if library in ("diffusers", "transformers"):
            kind = getattr(import_module(library), name)
            if isinstance(kind, type) and issubclass(kind, nn.Module):
                found[part] = kind
    return found


def _load_model(kind: type, folder: Path, dtype: torch.dtype, variant: str | None = None) -> nn.Module:
    """Returns a part of a pipeline, with every tensor that it has and, where it is diffusers' own, no other."""
    own = issubclass(kind, ModelMixin)
    options = {"torch_dtype": dtype, "low_cpu_mem_usage": False} if own else {"dtype": dtype}
    there = variant if any(folder.glob(f"*.{variant}*safetensors")) else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # from 0.40 on diffusers says `dtype` too, before only this
        return load_whole(kind, folder, strict=own, variant=there, **options)


def _load(kind: type, folder: Path, dtype, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # from 0.40 on diffusers says `dtype` too, before only this
        return kind.from_pretrained(
            folder, torch_dtype=dtype, local_files_only=True, low_cpu_mem_usage=False, **options
        )


def _variant(folder: Path, dtype: torch.dtype, denoiser: str) -> str | None:
    """Returns which files of a folder are read: half-precision ones for half precision, or where there are no others.

    denoiser: the sub-folder that tells.
    """
    half = any(folder.glob(f"{denoiser}/*.{VARIANT}*safetensors"))
    others = any(f".{VARIANT}" not in path.name for path in folder.glob(f"{denoiser}/*.safetensors"))
    return VARIANT if half and (dtype != torch.float32 or not others) else None


def _remedy(backbone: Backbone, file: Path | None, dtype: str) -> str:
    if is_shipped(backbone):
        return "install riebench again"
    if backbone.weights is None or file is None:
        return "mend the folder: diffusers' save_pretrained writes it whole"
    name = backbone.vae if backbone.vae and not file.is_relative_to(backbone_folder(backbone, dtype)) else ""
    return f"delete {file.resolve()} and run `riebench fetch {name or fetch_name(backbone, dtype)}`"


def _find_broken(folder: Path, variant: str | None) -> tuple[Path, str] | None:
    """Returns (path, what is wrong with it) of what is missing or truncated in a pipeline's folder; None where that is
    not it.

    variant: which files are read, as diffusers calls them.
    """
    try:
        index = json.loads((folder / "model_index.json").read_text())
    except ValueError:
        return folder / "model_index.json", "is not JSON"
    parts = [name for name, value in index.items() if isinstance(value, list) and value[0]]
    return next(filter(None, (_find_broken_part(folder / part, variant) for part in parts)), None)


def _find_broken_part(folder: Path, variant: str | None) -> tuple[Path, str] | None:
    files = [path for path in folder.glob("*") if path.is_file()]
    if not folder.name.startswith(("scheduler", "tokenizer")):
        if not (folder / "config.json").is_file():
            return folder / "config.json", "is missing"
        if not any(path.suffix == ".safetensors" for path in files):
            return folder, "holds no safetensors file"
    for path in files:
        if f".{VARIANT}." in path.name and variant is None:
            continue
        try:
            if path.suffix == ".json":
                json.loads(path.read_text())
            elif path.suffix == ".safetensors":
                safe_open(path, framework="pt").keys()
        except (ValueError, SafetensorError) as error:
            return path, f"is truncated or broken ({error})"
    return None
