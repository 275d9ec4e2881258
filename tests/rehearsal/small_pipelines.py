"""SDXL's two pipelines and the VAE that may stand in the place of theirs: narrow, with random weights, in the files and
with the keys of the true repositories.

The U-Net has the blocks, layers and attentions of the true one, with fewer and narrower transformer layers.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from rehearsal import small_tokenizers as words_of
from rehearsal.small_tokenizers import write_json
from safetensors.torch import save_file
from sdxl_configs import TEXT, TEXT_2, UNET, VAE, build_text_encoders, build_unet, build_vae

CHANNELS = 64  # of the four blocks, where the true ones have 1280
_NARROW = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
_TEXT = TEXT | _NARROW | {"projection_dim": 32}
_TEXT_2 = TEXT_2 | _NARROW | {"projection_dim": 32}
_UNET = UNET | {
    "block_out_channels": (32, 32, CHANNELS),
    "transformer_layers_per_block": (1, 1, 2),
    "attention_head_dim": (1, 2, 4),  # heads
    "cross_attention_dim": 64,
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 32 + 6 * 8,
    "norm_num_groups": 16,
}
_VAE = VAE | {"block_out_channels": (8, 8, 16, 16), "layers_per_block": 1, "norm_num_groups": 4}
_SCHEDULER = {
    "_diffusers_version": "0.24.0.dev0",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "interpolation_type": "linear",
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "sample_max_value": 1.0,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
    "use_karras_sigmas": False,
}
_INDEX = {
    "_class_name": "StableDiffusionXLPipeline",
    "_diffusers_version": "0.19.0.dev0",
    "force_zeros_for_empty_prompt": True,
    "text_encoder": ["transformers", "CLIPTextModel"],
    "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "tokenizer_2": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}


def turbo(folder: Path) -> None:
    scheduler = {"_class_name": "EulerAncestralDiscreteScheduler", "timestep_spacing": "trailing"}
    _pipeline(folder, sample_size=64, scheduler=scheduler, index={})


def base(folder: Path) -> None:
    scheduler = {"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "leading"}
    _pipeline(folder, sample_size=128, scheduler=scheduler, index={"add_watermarker": None})


def vae_fix(folder: Path) -> None:
    vae = build_vae(_VAE | {"force_upcast": False}, "cpu")
    _save(vae, folder, vae.state_dict(), ("",))


def _pipeline(folder: Path, sample_size: int, scheduler: dict, index: dict) -> None:
    kind = scheduler["_class_name"]
    write_json(folder / "model_index.json", _INDEX | {"scheduler": ["diffusers", kind]} | index)
    write_json(folder / "scheduler" / "scheduler_config.json", _SCHEDULER | scheduler)
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer_2").mkdir()
    words_of.clip(folder / "tokenizer")
    count = {"vocab_size": words_of.clip(folder / "tokenizer_2", pad="!")}
    encoders = build_text_encoders(_TEXT | count, _TEXT_2 | count, "cpu")
    for name, encoder in zip(("text_encoder", "text_encoder_2"), encoders, strict=True):
        # the true files have the names of transformers 4, where the first encoder has an outer module too
        tensors = {_outer(key): value for key, value in encoder.state_dict().items()}
        tensors["text_model.embeddings.position_ids"] = torch.arange(77)[None]
        _save(encoder, folder / name, tensors, ("", ".fp16"))
    vae, unet = build_vae(_VAE, "cpu"), build_unet(_UNET | {"sample_size": sample_size}, "cpu")
    _save(vae, folder / "vae", vae.state_dict(), ("", ".fp16"))
    with torch.no_grad():
        for name, weight in unet.named_parameters():
            if name.endswith("attn2.to_out.0.weight"):
                weight *= 100  # so that prompts are seen in the pictures
        unet.conv_out.weight *= 30
    _save(unet, folder / "unet", unet.state_dict(), ("", ".fp16"))


def _outer(key: str) -> str:
    return key if key.startswith(("text_model.", "text_projection.")) else f"text_model.{key}"


def _save(model: torch.nn.Module, folder: Path, tensors: dict[str, torch.Tensor], variants: tuple[str, ...]) -> None:
    """Writes a model's configuration, as it was written when the true one was, and its weights in each precision."""
    folder.mkdir(parents=True, exist_ok=True)
    model.save_config(folder) if hasattr(model, "save_config") else model.config.save_pretrained(folder)
    as_before_five(folder / "config.json")
    name = "diffusion_pytorch_model" if hasattr(model, "save_config") else "model"
    for variant in variants:
        kept = {key: v.half() if variant and v.is_floating_point() else v for key, v in tensors.items()}
        save_file(
            {key: v.contiguous() for key, v in kept.items()}, folder / f"{name}{variant}.safetensors", {"format": "pt"}
        )


def as_before_five(path: Path) -> None:
    """Names the precision in a configuration as transformers did before version 5."""
    config = json.loads(path.read_text())
    if "dtype" in config:
        config["torch_dtype"] = config.pop("dtype")
    if "transformers_version" in config:
        config["transformers_version"] = "4.40.0"
    write_json(path, config)
