"""`riebench tinyworld train`: every model of tinyworld from nothing. Each part goes on where it stopped."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from diffusers import AutoencoderKL, StableDiffusionXLPipeline
from transformers import CLIPTokenizer

from riebench.errors import UserError, did_you_mean
from riebench.sampling import choose_device
from riebench.tinyworld import clip, grounder, oracle
from riebench.tinyworld.models import build_scheduler, write_tokenizer
from riebench.tinyworld.train_turbo import Turbo, train_turbo
from riebench.tinyworld.train_vae import train_vae

PARTS = ("vae", "turbo", "oracle", "grounder", "clip")


def train_world(out: Path, parts: Sequence[str] = PARTS, *, seed: int = 0, device: str = "auto") -> None:
    """Trains the named parts into `out`, laid out as `data/tinyworld`; training state goes to `out/state`.

    turbo needs the vae, from this call or an earlier one. Raises `UserError` for an unknown part or a missing vae.
    """
    for part in parts:
        if part not in PARTS:
            raise UserError(
                f"tinyworld has no part {part!r}{did_you_mean(part, PARTS)}", remedy=f"use {', '.join(PARTS)}"
            )
    where, state = choose_device(device), Path(out) / "state"
    if "vae" in parts:
        train_vae(state, where, seed=seed).save_pretrained(state / "vae")
    if "turbo" in parts:
        if not (state / "vae" / "config.json").is_file():
            raise UserError(f"there is no autoencoder in {state}", remedy="train the part vae first")
        vae = AutoencoderKL.from_pretrained(state / "vae", low_cpu_mem_usage=False)
        vae.register_to_config(_name_or_path="")  # where it lay while training is nobody's business
        write_tokenizer(state / "tokenizer")
        tokenizer = CLIPTokenizer.from_pretrained(state / "tokenizer")
        turbo = train_turbo(state, vae, tokenizer, where, seed=seed)
        write_pipeline(Path(out) / "turbo", turbo, vae, tokenizer)
    if "oracle" in parts:
        oracle.save_oracle(oracle.train_oracle(state, where, seed=seed), Path(out) / "oracle.safetensors")
    if "grounder" in parts:
        grounder.save_grounder(grounder.train_grounder(state, where, seed=seed), Path(out) / "grounder.safetensors")
    if "clip" in parts:
        clip.save_clip(clip.train_clip(state, where, seed=seed), Path(out) / "clip")


def write_pipeline(folder: Path, turbo: Turbo, vae: AutoencoderKL, tokenizer: CLIPTokenizer) -> None:
    """Writes the folder that `StableDiffusionXLPipeline.from_pretrained` loads; both tokenizers are the same."""
    StableDiffusionXLPipeline(
        vae=vae.cpu(),
        text_encoder=turbo.text_encoder.cpu(),
        text_encoder_2=turbo.text_encoder_2.cpu(),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=turbo.unet.cpu(),
        scheduler=build_scheduler(),
        add_watermarker=False,
    ).save_pretrained(folder)
