"""A tiny model of SDXL's shape, pipelines of it and of the full size with random weights, and what holds for both."""

from __future__ import annotations

import time
from contextlib import nullcontext
from statistics import median

import torch
from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel

from riebench.backbones.blocks import Blocks
from riebench.backbones.family import Site
from riebench.backbones.sdxl import SDXL, cast_decoder_input
from riebench.backbones.sdxl_shape import (
    FULL,
    TEXT,
    TEXT_2,
    UNET,
    VAE,
    Shape,
    build_text_encoders,
    build_unet,
    build_vae,
)
from riebench.backbones.sdxl_shape import random_pipeline as untouched_pipeline
from riebench.backbones.table import Backbone
from riebench.generation.interventions import Intervention
from riebench.generation.lens import Lens, Part, RowAdditions
from riebench.generation.sampler import Request, Sampler

__all__ = ["FULL", "build_text_encoders", "build_unet", "build_vae"]  # for those that look for all of it here

_NARROW = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
TINY = (
    UNET
    | {
        "sample_size": 8,
        "block_out_channels": (16, 32, 64),
        "transformer_layers_per_block": (1, 1, 2),
        "attention_head_dim": (1, 2, 4),
        "cross_attention_dim": 64,
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 32 + 6 * 8,
        "norm_num_groups": 8,
    },
    VAE | {"sample_size": 64, "block_out_channels": (8, 16, 16, 16), "layers_per_block": 1, "norm_num_groups": 4},
    TEXT | _NARROW | {"projection_dim": 32},
    TEXT_2 | _NARROW | {"projection_dim": 32},
)


def run_unet(unet: UNet2DConditionModel, height: int, width: int, rows: int = 1) -> torch.Tensor:
    """The U-Net's output for zeros of a picture of so many pixels, as the pipeline calls it."""
    config, like = unet.config, {"device": unet.device, "dtype": unet.dtype}
    pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
    with torch.no_grad():
        return unet(
            torch.zeros(rows, 4, height // 8, width // 8, **like),
            torch.tensor(999.0, device=unet.device),
            torch.zeros(rows, 77, config.cross_attention_dim, **like),
            added_cond_kwargs={
                "text_embeds": torch.zeros(rows, pooled, **like),
                "time_ids": torch.zeros(rows, 6, **like),
            },
            return_dict=False,
        )[0]


def random_pipeline(shape: Shape, model: str, device: str, dtype: torch.dtype) -> StableDiffusionXLPipeline:
    """A pipeline as `load_pipeline` makes it, but with random weights and tinyworld's words, and not channels last."""
    pipeline = untouched_pipeline(shape, model, device, dtype)
    cast_decoder_input(pipeline.vae)
    return pipeline


def check_generation(pipeline: StableDiffusionXLPipeline, backbone: Backbone) -> None:
    """Images through the sampler are finite; a zero addition changes no bit, and a dense patch of up.0.1 does."""
    sampler, site = Sampler(backbone, pipeline, batch_size=1), Site("up.0.1")
    original, edited = (
        sampler.generate([Request(prompt, 3)], [site])[0]
        for prompt in ("a red heart in the sky", "a blue square by the sea")
    )
    height, width = sampler.grids(["up.0.1"])["up.0.1"]
    channels = pipeline.unet.config.block_out_channels[-1]
    assert original.trace[site].shape == (backbone.steps, height * width, channels)
    assert original.trace[site].dtype == pipeline.unet.dtype
    assert original.image.shape == (3, backbone.height, backbone.width)
    patch = edited.trace[site] - original.trace[site]
    zeroed, patched = (
        sampler.generate([Request("a red heart in the sky", 3, Intervention({site: strength * patch}))])[0].image
        for strength in (0, 1)
    )
    for image in (original.image, patched):
        assert image.isfinite().all() and 0 <= image.min() < image.max() <= 1
    assert torch.equal(zeroed, original.image)
    assert not torch.equal(patched, original.image)


def cost_of_hooks(unet: UNet2DConditionModel, height: int, width: int, repeats: int) -> float:
    """How much longer a forward takes with a dense addition on up.0.1, as a share of a plain one: medians of forwards
    that take turns, after one of each that does not count."""
    blocks = Blocks(SDXL, unet)
    high, wide = blocks.grids(["up.0.1"], height, width, 8)["up.0.1"]
    cells = torch.arange(high * wide, device=unet.device)
    values = torch.ones(1, len(cells), unet.config.block_out_channels[-1], device=unet.device, dtype=unet.dtype)
    addition = {Site("up.0.1"): RowAdditions(1, [Part(torch.zeros_like(cells), cells, values)])}
    seconds: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(repeats + 1):
        for hooked, taken in seconds.items():
            _wait(unet)
            start = time.perf_counter()
            with Lens(blocks, additions=addition) if hooked else nullcontext():
                run_unet(unet, height, width)
            _wait(unet)
            taken.append(time.perf_counter() - start)
    return median(seconds[True][1:]) / median(seconds[False][1:]) - 1


def _wait(unet: UNet2DConditionModel) -> None:
    if unet.device.type == "cuda":
        torch.cuda.synchronize()
