"""SDXL's own configuration, a tiny model of the same shape, and pipelines of either with random weights.

The figures are those of the `config.json` files of stabilityai/stable-diffusion-xl-base-1.0; sdxl-turbo's differ in the
U-Net's `sample_size`, 64.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from statistics import median

import torch
from diffusers import (
    AutoencoderKL,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from riebench.backbones.blocks import Blocks
from riebench.backbones.family import Site
from riebench.backbones.sdxl import SDXL, cast_decoder_input
from riebench.backbones.table import Backbone
from riebench.core.files import data_folder
from riebench.generation.interventions import Intervention
from riebench.generation.lens import Lens, Part, RowAdditions
from riebench.generation.sampler import Request, Sampler

UNET = {
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "layers_per_block": 2,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
VAE = {
    "sample_size": 1024,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "latent_channels": 4,
    "scaling_factor": 0.13025,
    "force_upcast": True,
}
_TOKENS = {"vocab_size": 49408, "max_position_embeddings": 77, "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}
TEXT = _TOKENS | {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "projection_dim": 768,
    "hidden_act": "quick_gelu",
}
TEXT_2 = _TOKENS | {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "projection_dim": 1280,
    "hidden_act": "gelu",
}
_NARROW = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
FULL = (UNET, VAE, TEXT, TEXT_2)
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
_NOISE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def build_unet(config: dict = UNET, device: str = "meta") -> UNet2DConditionModel:
    with torch.device(device):
        return UNet2DConditionModel(**config).eval()


def build_vae(config: dict = VAE, device: str = "meta") -> AutoencoderKL:
    with torch.device(device):
        return AutoencoderKL(**config).eval()


def build_text_encoders(
    config: dict = TEXT, config_2: dict = TEXT_2, device: str = "meta"
) -> tuple[CLIPTextModel, CLIPTextModelWithProjection]:
    with torch.device(device):
        return (
            CLIPTextModel(CLIPTextConfig(**config)).eval(),
            CLIPTextModelWithProjection(CLIPTextConfig(**config_2)).eval(),
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


def random_pipeline(
    configs: tuple[dict, dict, dict, dict], model: str, device: str, dtype: torch.dtype
) -> StableDiffusionXLPipeline:
    """A pipeline as `load_pipeline` makes it, but with random weights and tinyworld's words.

    model: "turbo" or "base", whose scheduler it has. The VAE is float32.
    """
    unet, vae, text, text_2 = configs
    torch.manual_seed(0)
    with _making(dtype):
        parts = {"unet": build_unet(unet, device)}
        parts["text_encoder"], parts["text_encoder_2"] = build_text_encoders(text, text_2, device)
    words = data_folder() / "tinyworld" / "turbo" / "tokenizer"
    scheduler = (
        EulerAncestralDiscreteScheduler(**_NOISE, timestep_spacing="trailing", steps_offset=1)
        if model == "turbo"
        else EulerDiscreteScheduler(**_NOISE, timestep_spacing="leading", steps_offset=1)
    )
    pipeline = StableDiffusionXLPipeline(
        **parts,
        vae=build_vae(vae, device),
        tokenizer=CLIPTokenizer.from_pretrained(words, model_max_length=77),
        tokenizer_2=CLIPTokenizer.from_pretrained(words, model_max_length=77),
        scheduler=scheduler,
        add_watermarker=False,
    )
    cast_decoder_input(pipeline.vae)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@contextmanager
def _making(dtype: torch.dtype) -> Iterator[None]:
    """New parameters are of this type, so that large models need no room in float32 first."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


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
