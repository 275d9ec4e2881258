"""Pipelines from folders onto a device in a precision, and the sizes of what their U-Nets make."""

from __future__ import annotations

import hashlib
import json
import warnings
from pathlib import Path

import torch
from diffusers import AutoencoderKL, StableDiffusionXLPipeline
from diffusers.utils import logging as diffusers_logging
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers.utils import logging as transformers_logging

from riebench.backbones.table import (
    BLOCK_NAMES,
    BLOCKS,
    DTYPES,
    Backbone,
    backbone_folder,
    fetch_name,
    is_shipped,
    vae_folder,
)
from riebench.core.errors import UserError, did_you_mean
from riebench.generation.lens import block_module, find_sites
from sae_models.tensors import dtype_name

VARIANT = "fp16"  # as diffusers calls half-precision files: `unet/diffusion_pytorch_model.fp16.safetensors`


def choose_device(name: str) -> torch.device:
    """The torch device of "auto", "cpu" or "cuda". Raises `UserError` for cuda where there is none."""
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
    """What a backbone's U-Net and text encoders are computed in.

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
    """sha256 over the names and bytes of the modules' weights, in hex."""
    digest = hashlib.sha256()
    for module in modules:
        for name, value in module.state_dict().items():
            digest.update(name.encode())
            digest.update(value.cpu().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def load_pipeline(backbone: Backbone, device: torch.device, dtype: torch.dtype) -> StableDiffusionXLPipeline:
    """The backbone's pipeline on a device, with the scheduler that lies with it; nothing is downloaded.

    dtype: of the U-Net and the text encoders, from `choose_dtype`. SDXL's VAE overflows in half precision, so a
    pipeline's own VAE is float32 whatever the U-Net is, and takes latents of any type; one of
    `riebench.backbones.table.VAES` runs in `dtype`. Half precision is read from half-precision files where the folder
    has them. Raises `UserError` when weights are missing or broken, or there is no room for them.
    """
    folder, other = backbone_folder(backbone, dtype_name(dtype)), vae_folder(backbone)
    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    variant = _variant(folder, dtype)
    try:
        given = {"vae": _load(AutoencoderKL, other, dtype)} if other else {}
        types = {"default": dtype, "vae": torch.float32}
        pipeline = _load(StableDiffusionXLPipeline, folder, types, variant=variant, add_watermarker=False, **given)
    except Exception as error:
        file, what = _find_broken(folder, variant) or (other and _find_broken_part(other, None)) or (None, str(error))
        raise UserError(
            f"the weights of {backbone.name} cannot be loaded: {f'{file} {what}' if file else what}",
            remedy=_remedy(backbone, file, dtype_name(dtype)),
        ) from error
    pipeline.set_progress_bar_config(disable=True)
    if other:
        pipeline.vae.register_to_config(force_upcast=False)  # else the pipeline decodes in float32 after all
    cast_decoder_input(pipeline.vae)
    for part in (pipeline.unet, pipeline.vae):
        part.to(memory_format=torch.channels_last)  # up to a seventh faster on a CPU (`docs/performance.md`)
    try:
        return pipeline.to(device)
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"{backbone.name} does not fit into the memory of {device}: it takes about"
            f" {backbone.gigabytes(dtype_name(dtype)):.1f} GB",
            remedy="free some, use dtype float16, or another device",
        ) from error


def cast_decoder_input(vae: AutoencoderKL) -> None:
    """Lets a VAE decode latents of any floating-point type: its decoder's first layer casts them to its own.

    diffusers' pipeline gives the VAE latents of the U-Net's type, and casts only where the VAE is float16.
    """
    first = vae.decoder.conv_in if vae.post_quant_conv is None else vae.post_quant_conv
    first.register_forward_pre_hook(_cast_to_weights)


def _cast_to_weights(module: nn.Module, args: tuple) -> tuple:
    return (args[0].to(module.weight.dtype), *args[1:])


def is_black(image_chw: Tensor) -> bool:
    """Whether no pixel of an image in [0, 1] is above 0 once rounded to 8 bits: what an overflowed VAE makes, whose
    NaN become black in a file."""
    return not bool(((image_chw * 255).round() > 0).any())


def latent_grid(pipeline: StableDiffusionXLPipeline, height: int = 0, width: int = 0) -> tuple[int, int]:
    """Cells (height, width) of the latents of a picture of so many pixels; 0 is the model's own size."""
    own = pipeline.default_sample_size
    return tuple(pixels // pipeline.vae_scale_factor if pixels else own for pixels in (height, width))


def block_grids(unet: nn.Module, height: int, width: int, vae_scale: int) -> dict[str, tuple[int, int]]:
    """Block -> cells (height, width) of its updates and neurons, for pictures of so many pixels.

    vae_scale: pixels a latent cell, `pipeline.vae_scale_factor`. Counted from the U-Net's downsamplers, each of which
    halves the grid and rounds up; on the way up a level has the grid that it has on the way down.
    """
    grid = (height // vae_scale, width // vae_scale)
    levels = []
    for part in unet.down_blocks:
        levels.append(grid)
        if part.downsamplers:
            grid = tuple((cells + 1) // 2 for cells in grid)

    def level(path: str) -> tuple[int, int]:
        part, index = path.split(".")[:2]
        if part == "mid_block":
            return grid
        return levels[int(index)] if part == "down_blocks" else levels[-1 - int(index)]

    return {block: level(path) for block, path in BLOCKS.items()}


def trace_bytes(
    unet: nn.Module, kind: str, steps: int, height: int, width: int, dtype: torch.dtype, vae_scale: int
) -> int:
    """Bytes of one picture's trace of the four blocks, of one row; with guidance a picture has two rows.

    kind: "update" or "neurons", as in `find_sites`. height, width: in pixels. dtype: of the U-Net, in which traces are
    kept. vae_scale: pixels a latent cell, `pipeline.vae_scale_factor`.
    """
    grids = block_grids(unet, height, width, vae_scale)
    values = 0
    for site in find_sites(unet, BLOCK_NAMES, kind):
        block, (rows, columns) = block_module(unet, site.block), grids[site.block]
        channels = block.out_channels if site.layer is None else neuron_count(block, site.layer)
        values += channels * rows * columns
    return values * steps * dtype.itemsize


def neuron_count(block: nn.Module, layer: int) -> int:
    """How many GEGLU outputs a layer of a block has at each cell."""
    return block.transformer_blocks[layer].ff.net[2].in_features


def _load(kind: type, folder: Path, dtype, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # from 0.40 on diffusers says `dtype` too, before only this
        return kind.from_pretrained(
            folder, torch_dtype=dtype, local_files_only=True, low_cpu_mem_usage=False, **options
        )


def _variant(folder: Path, dtype: torch.dtype) -> str | None:
    """Which files of a folder are read: half-precision ones for half precision, or where there are no others."""
    half = any(folder.glob(f"unet/*.{VARIANT}*safetensors"))
    others = any(f".{VARIANT}" not in path.name for path in folder.glob("unet/*.safetensors"))
    return VARIANT if half and (dtype != torch.float32 or not others) else None


def _remedy(backbone: Backbone, file: Path | None, dtype: str) -> str:
    if is_shipped(backbone):
        return "install riebench again"
    if backbone.weights is None or file is None:
        return "mend the folder: diffusers' save_pretrained writes it whole"
    name = backbone.vae if backbone.vae and not file.is_relative_to(backbone_folder(backbone, dtype)) else ""
    return f"delete {file.resolve()} and run `riebench fetch {name or fetch_name(backbone, dtype)}`"


def _find_broken(folder: Path, variant: str | None) -> tuple[Path, str] | None:
    """(path, what is wrong with it) of what is missing or truncated in a pipeline's folder; None where that is not it.

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
    if folder.name not in ("scheduler", "tokenizer", "tokenizer_2"):
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
