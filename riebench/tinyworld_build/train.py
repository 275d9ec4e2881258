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
from riebench.backbones.worlds import ROLES
from riebench.core.claims import claim_folder
from riebench.core.errors import UserError, did_you_mean
from riebench.dictionaries.settings import defaults_for, generated_data, make_config, make_grid
from riebench.dictionaries.train import train_dictionaries
from riebench.generation.sampler import load_sampler
from riebench.tinyworld.weights import save_weights
from riebench.tinyworld_build.flux_models import build_flux_vae
from riebench.tinyworld_build.models import build_base_scheduler, build_turbo_scheduler, write_tokenizer
from riebench.tinyworld_build.structure import check_world
from riebench.tinyworld_build.train_base import Denoiser, train_base
from riebench.tinyworld_build.train_clip import save_clip, train_clip
from riebench.tinyworld_build.train_flux import build_pipeline, make_tokenizers, save_flux, train_flux
from riebench.tinyworld_build.train_grounder import train_grounder
from riebench.tinyworld_build.train_oracle import train_oracle
from riebench.tinyworld_build.train_turbo import make_pairs, train_turbo
from riebench.tinyworld_build.train_vae import train_vae

PLANTED, FLUX = "planted", "flux"
CONTROL_PARTS = ("vae", "turbo", "dictionaries")  # of the other worlds with roles, whose models have one step
#: World -> the parts that it has, in the order in which they are made.
PARTS: dict[str, tuple[str, ...]] = dict.fromkeys(ROLES, CONTROL_PARTS) | {
    PLANTED: ("vae", "base", "turbo", "oracle", "grounder", "clip", "dictionaries"),
    FLUX: ("vae", "flux"),
}
PAIR_BATCH, PAIR_STEPS = 64, 10  # a pair is made in fewer steps than base is judged at
CONTROL_STEPS = 3000  # of training of the model of one step
CONTROL_K, CONTROL_EXPANSIONS = (16,), (8,)  # of its dictionaries: those that runs use where none is named


def train_world(
    out: Path, parts: Sequence[str] = (), world: str = PLANTED, *, seed: int = 0, device: str = "auto"
) -> None:
    """Trains the named parts of a world (default: all that it has) into `out`, laid out as `data/tinyworld`; training
    state goes to `out/state`.

    base needs the vae, turbo needs base and dictionaries need turbo, from this call or an earlier one. The turbo of a
    world with other roles than the planted one's is a model of one step, `out/<world>`, which needs the vae alone: all
    these worlds share it. The world "flux" has an autoencoder of its own, and one model, `out/flux`. All share the
    judges. Raises `UserError` for an unknown world or part, one whose need is missing, and an `out` that holds
    something else.
    """
    check_world(world, PARTS)
    known = PARTS[world]
    for part in parts:
        if part not in known:
            raise UserError(
                f"the {world} world has no part {part!r}{did_you_mean(part, known)}", remedy=f"use {', '.join(known)}"
            )
    parts, out = parts or known, claim_folder(out, "training of tinyworld")
    where, state = choose_device(device), out / "state"
    if world == FLUX:
        _make_flux(out, state / FLUX, where, parts, seed)
        return
    if "vae" in parts:
        train_vae(state, where, seed=seed).save_pretrained(state / "vae")
    if "base" in parts:
        _train_base(out, state, where, seed)
    if "turbo" in parts and world == PLANTED:
        _train_turbo(out, state, where, seed)
    elif "turbo" in parts:
        _train_control(out, state, where, world, seed)
    if "oracle" in parts:
        save_weights(train_oracle(state, where, seed=seed), out / "oracle.safetensors")
    if "grounder" in parts:
        save_weights(train_grounder(state, where, seed=seed), out / "grounder.safetensors")
    if "clip" in parts:
        save_clip(train_clip(state, where, seed=seed), out / "clip")
    if "dictionaries" in parts:
        turbo = _backbone(out, "tinyworld-turbo@1", world)
        data, defaults = generated_data(turbo, seed=seed, device=device), defaults_for("tinyworld-turbo@1")
        config, batch_size = make_config(defaults, data)
        grid = (
            make_grid(defaults) if world == PLANTED else make_grid(defaults, k=CONTROL_K, expansions=CONTROL_EXPANSIONS)
        )
        train_dictionaries(data, grid, out / "dictionaries", config, batch_size)


def _make_flux(out: Path, state: Path, device: torch.device, parts: Sequence[str], seed: int) -> None:
    if "vae" in parts:
        train_vae(state, device, build_flux_vae, seed=seed).save_pretrained(state / "vae")
    if "flux" in parts:
        vae, (tokenizer, tokenizer_2) = _vae(state), make_tokenizers(state)
        model = train_flux(state, vae, tokenizer_2, device, seed=seed)
        save_flux(build_pipeline(model, vae, tokenizer, tokenizer_2), out / FLUX)


def _train_base(out: Path, state: Path, device: torch.device, seed: int) -> None:
    vae, tokenizer = _vae_and_tokenizer(state)
    base = train_base(state, vae, tokenizer, device, PLANTED, seed=seed)
    _pipeline(base, vae, tokenizer, build_base_scheduler()).save_pretrained(out / "base")


def _train_turbo(out: Path, state: Path, device: torch.device, seed: int) -> None:
    _need(out / "base" / "model_index.json", "base")
    teacher = dataclasses.replace(_backbone(out, "tinyworld-base@25"), steps=PAIR_STEPS)
    sampler = load_sampler(teacher, device, PAIR_BATCH)
    pipeline = sampler.pipeline
    base = Denoiser(pipeline.tokenizer, PLANTED)
    for name, part in base.named_children():
        part.load_state_dict(getattr(pipeline, name).state_dict())
    pairs = make_pairs(sampler, state, seed=seed)
    turbo = train_turbo(state, base, pipeline.tokenizer, *pairs, device, seed=seed)
    for part in (turbo.unet, pipeline.vae):
        part.register_to_config(_name_or_path="")
    _pipeline(turbo, pipeline.vae, pipeline.tokenizer, build_turbo_scheduler()).save_pretrained(out / "turbo")


def _train_control(out: Path, state: Path, device: torch.device, world: str, seed: int) -> None:
    """Trains at the noisiest step alone, which is all that a model of one step is asked for, and writes it in half
    precision."""
    vae, tokenizer = _vae_and_tokenizer(state)
    steps = {"steps": CONTROL_STEPS, "start_steps": CONTROL_STEPS}
    model = train_base(state / world, vae, tokenizer, device, world, seed=seed, **steps).half()
    _pipeline(model, vae, tokenizer, build_turbo_scheduler()).save_pretrained(out / world)


def _vae_and_tokenizer(state: Path) -> tuple[AutoencoderKL, CLIPTokenizer]:
    vae = _vae(state)
    write_tokenizer(state / "tokenizer")
    return vae, CLIPTokenizer.from_pretrained(state / "tokenizer")


def _vae(state: Path) -> AutoencoderKL:
    _need(state / "vae" / "config.json", "vae")
    vae = AutoencoderKL.from_pretrained(state / "vae", low_cpu_mem_usage=False)
    vae.register_to_config(_name_or_path="")  # where it lay while training is nobody's business
    return vae


def _backbone(out: Path, name: str, world: str = PLANTED) -> Backbone:
    """Returns the table's entry, with the weights that were made here; in another world, its model of one step."""
    backbone = BACKBONES.get(name)
    if world != PLANTED:
        backbone = dataclasses.replace(backbone, name=f"tinyworld-{world}@1", folder=world, dictionaries="")
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
