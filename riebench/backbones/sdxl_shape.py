"""SDXL's own configuration, and pipelines of that shape, or of a smaller one, with random weights.

The figures are those of the `config.json` files of stabilityai/stable-diffusion-xl-base-1.0; sdxl-turbo's differ in the
U-Net's `sample_size`, 64.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from diffusers import (
    AutoencoderKL,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from riebench.core.files import data_folder

#: Configurations of the U-Net, the VAE and the two text encoders.
Shape = tuple[dict, dict, dict, dict]

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
FULL: Shape = (UNET, VAE, TEXT, TEXT_2)
NOISE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def build_unet(config: dict = UNET, device: torch.device | str = "meta") -> UNet2DConditionModel:
    """Returns a U-Net of a configuration, with random weights."""
    with torch.device(device):
        return UNet2DConditionModel(**config).eval()


def build_vae(config: dict = VAE, device: torch.device | str = "meta") -> AutoencoderKL:
    """Returns an autoencoder of a configuration, with random weights."""
    with torch.device(device):
        return AutoencoderKL(**config).eval()


def build_text_encoders(
    config: dict = TEXT, config_2: dict = TEXT_2, device: torch.device | str = "meta"
) -> tuple[CLIPTextModel, CLIPTextModelWithProjection]:
    """Returns the two text encoders of their configurations, with random weights."""
    with torch.device(device):
        return (
            CLIPTextModel(CLIPTextConfig(**config)).eval(),
            CLIPTextModelWithProjection(CLIPTextConfig(**config_2)).eval(),
        )


def random_pipeline(
    shape: Shape, model: str, device: torch.device | str, dtype: torch.dtype
) -> StableDiffusionXLPipeline:
    """Returns a pipeline with random weights, always the same, and tinyworld's words; it is not prepared yet
    (`Family.prepare`). It seeds torch's own random numbers.

    model: "turbo" or "base", whose scheduler it has. dtype: of all but the VAE, which is float32.
    """
    unet, vae, text, text_2 = shape
    torch.manual_seed(0)
    with _making(dtype):
        parts = {"unet": build_unet(unet, device)}
        parts["text_encoder"], parts["text_encoder_2"] = build_text_encoders(text, text_2, device)
    words = data_folder() / "tinyworld" / "turbo" / "tokenizer"
    scheduler = (
        EulerAncestralDiscreteScheduler(**NOISE, timestep_spacing="trailing", steps_offset=1)
        if model == "turbo"
        else EulerDiscreteScheduler(**NOISE, timestep_spacing="leading", steps_offset=1)
    )
    pipeline = StableDiffusionXLPipeline(
        **parts,
        vae=build_vae(vae, device),
        tokenizer=CLIPTokenizer.from_pretrained(words, model_max_length=77),
        tokenizer_2=CLIPTokenizer.from_pretrained(words, model_max_length=77),
        scheduler=scheduler,
        add_watermarker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@contextmanager
def _making(dtype: torch.dtype) -> Iterator[None]:
    """Makes new parameters of this type, so that large models need no room in float32 first."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
