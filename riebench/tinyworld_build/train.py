"""`riebench tinyworld train`: every model of tinyworld from nothing. Each part goes on where it stopped."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import AutoencoderKL, StableDiffusionXLPipeline
from transformers import CLIPTokenizer

from riebench.backbones.loading import choose_device
from riebench.backbones.table import BACKBONES, Backbone
from riebench.core.claims import claim_folder
from riebench.core.errors import UserError, did_you_mean
from riebench.dictionaries.settings import defaults_for, generated_data, make_config, make_grid
from riebench.dictionaries.train import train_dictionaries
from riebench.generation.sampler import load_sampler
from riebench.tinyworld.weights import save_weights
from riebench.tinyworld_build.models import build_base_scheduler, build_turbo_scheduler, write_tokenizer
from riebench.tinyworld_build.train_base import Denoiser, train_base
from riebench.tinyworld_build.train_clip import save_clip, train_clip
from riebench.tinyworld_build.train_grounder import train_grounder
from riebench.tinyworld_build.train_oracle import train_oracle
from riebench.tinyworld_build.train_turbo import make_pairs, train_turbo
from riebench.tinyworld_build.train_vae import train_vae

PARTS = ("vae", "base", "turbo", "oracle", "grounder", "clip", "dictionaries")
PAIR_BATCH, PAIR_STEPS = 64, 10  # a pair is made in fewer steps than base is judged at


def train_world(out: Path, parts: Sequence[str] = PARTS, *, seed: int = 0, device: str = "auto") -> None:
    """Trains the named parts into `out`, laid out as `data/tinyworld`; training state goes to `out/state`.

    base needs the vae, turbo needs base and dictionaries need turbo, from this call or an earlier one. Raises
    `UserError` for an unknown part, one whose need is missing, and an `out` that holds something else.
    """
    for part in parts:
        if part not in PARTS:
            raise UserError(
                f"tinyworld has no part {part!r}{did_you_mean(part, PARTS)}", remedy=f"use {', '.join(PARTS)}"
            )
    where, out = choose_device(device), claim_folder(out, "training of tinyworld")
    state = out / "state"
    if "vae" in parts:
        train_vae(state, where, seed=seed).save_pretrained(state / "vae")
    if "base" in parts:
        _train_base(out, state, where, seed)
    if "turbo" in parts:
        _train_turbo(out, state, where, seed)
    if "oracle" in parts:
        save_weights(train_oracle(state, where, seed=seed), out / "oracle.safetensors")
    if "grounder" in parts:
        save_weights(train_grounder(state, where, seed=seed), out / "grounder.safetensors")
    if "clip" in parts:
        save_clip(train_clip(state, where, seed=seed), out / "clip")
    if "dictionaries" in parts:
        turbo = _backbone(out, "tinyworld-turbo@1")
        data, defaults = generated_data(turbo, seed=seed, device=device), defaults_for(turbo.name)
        config, batch_size = make_config(defaults, data)
        train_dictionaries(data, make_grid(defaults), out / "dictionaries", config, batch_size)


def _train_base(out: Path, state: Path, device: torch.device, seed: int) -> None:
    _need(state / "vae" / "config.json", "vae")
    vae = AutoencoderKL.from_pretrained(state / "vae", low_cpu_mem_usage=False)
    vae.register_to_config(_name_or_path="")  # where it lay while training is nobody's business
    write_tokenizer(state / "tokenizer")
    tokenizer = CLIPTokenizer.from_pretrained(state / "tokenizer")
    base = train_base(state, vae, tokenizer, device, seed=seed)
    _pipeline(base, vae, tokenizer, build_base_scheduler()).save_pretrained(out / "base")


def _train_turbo(out: Path, state: Path, device: torch.device, seed: int) -> None:
    _need(out / "base" / "model_index.json", "base")
    teacher = dataclasses.replace(_backbone(out, "tinyworld-base@25"), steps=PAIR_STEPS)
    sampler = load_sampler(teacher, device, PAIR_BATCH)
    pipeline = sampler.pipeline
    base = Denoiser(pipeline.tokenizer)
    for name, part in base.named_children():
        part.load_state_dict(getattr(pipeline, name).state_dict())
    pairs = make_pairs(sampler, state, seed=seed)
    turbo = train_turbo(state, base, pipeline.tokenizer, *pairs, device, seed=seed)
    for part in (turbo.unet, pipeline.vae):
        part.register_to_config(_name_or_path="")
    _pipeline(turbo, pipeline.vae, pipeline.tokenizer, build_turbo_scheduler()).save_pretrained(out / "turbo")


def _backbone(out: Path, name: str) -> Backbone:
    """Returns the table's entry, with the weights that were made here."""
    backbone = BACKBONES.get(name)
    return dataclasses.replace(backbone, folder=str((out / Path(backbone.folder).name).resolve()))


def _need(path: Path, part: str) -> None:
    if not path.is_file():
        raise UserError(f"{path} is missing", remedy=f"train the part {part} first")


def _pipeline(model: Denoiser, vae: AutoencoderKL, tokenizer: CLIPTokenizer, scheduler) -> StableDiffusionXLPipeline:
    """Returns the pipeline as `from_pretrained` will load it; both tokenizers are the same."""
    return StableDiffusionXLPipeline(
        vae=vae.cpu(),
        text_encoder=model.text_encoder.cpu(),
        text_encoder_2=model.text_encoder_2.cpu(),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=model.unet.cpu(),
        scheduler=scheduler,
        add_watermarker=False,
    )
