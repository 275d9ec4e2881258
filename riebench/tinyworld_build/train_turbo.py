"""Distillation of tinyworld-turbo out of tinyworld-base: its own noise-to-picture pairs, in one step and in four."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save
from torch import Tensor
from transformers import CLIPTokenizer

from riebench.core.files import write_bytes
from riebench.core.progress import Progress
from riebench.generation.sampler import Request, Sampler
from riebench.tinyworld.captions import captions
from riebench.tinyworld.noise import layout_from_noise, starting_noise
from riebench.tinyworld.render import render
from riebench.tinyworld.scenes import sample_attributes
from riebench.tinyworld.weights import reading
from riebench.tinyworld_build.fit import fit
from riebench.tinyworld_build.models import build_turbo_scheduler, encode_prompts
from riebench.tinyworld_build.train_base import Denoiser, denoise, latent_weights

PAIRS, CHUNK, FIRST_SEED = 2560, 128, 1_000_000
STEPS, BATCH, LATER = 540, 32, 16  # LATER: rows of each batch that are also taken to a later step of four
ABSOLUTE = 1.0  # weight of the absolute error beside the square: where the model is unsure it picks a side, not a blend


def make_pairs(sampler: Sampler, folder: Path, *, seed: int = 0, count: int = PAIRS) -> tuple[Tensor, Tensor]:
    """Returns (attributes `[n, 8]`, latents `[n, 4, 32, 32]`) of tinyworld-base's generations; pair i starts from seed
    `FIRST_SEED + i`. Written in chunks to `folder/pairs`, so that a run that was stopped goes on. Raises `UserError`
    naming a broken chunk."""
    attributes = torch.from_numpy(sample_attributes(np.random.default_rng([seed, 7]), count, "train"))
    latents = []
    with Progress("generating pairs", total=count, unit="pair") as progress:
        for start in range(0, count, CHUNK):
            path = folder / "pairs" / f"{start:06d}.safetensors"
            if not path.exists():
                prompts = captions(attributes[start : start + CHUNK].numpy())
                requests = [Request(prompt, FIRST_SEED + start + i) for i, prompt in enumerate(prompts)]
                made = torch.stack([sample.image for sample in sampler.generate(requests, decode=False)])
                write_bytes(path, save({"latents": made}))
            with reading(path):
                latents.append(load_file(path)["latents"])
            progress.update(min(start + CHUNK, count))
    return attributes, torch.cat(latents)


def train_turbo(
    folder: Path, base: Denoiser, tokenizer: CLIPTokenizer, attributes: Tensor, latents: Tensor, device: torch.device,
    *, seed: int = 0, steps: int = STEPS,
) -> Denoiser:  # fmt: skip
    """Trains by regression on the pairs, of one step from the noise and of later steps from what the first step makes.

    Starts from base; the text encoders stay base's. Later steps see the first step's own output, moved towards the
    target as far as the steps between would have moved it, under fresh noise: as Euler ancestral sampling does.
    """
    turbo = copy.deepcopy(base).to(device).eval().requires_grad_(False)
    scheduler = build_turbo_scheduler()
    scheduler.set_timesteps(4)
    timesteps, sigmas = scheduler.timesteps.to(device), scheduler.sigmas[:4].to(device)
    kept = sigmas[1] ** 2 / sigmas[0]  # of the first noise at the second step, in standard deviations ("sigma_down")
    fresh = (sigmas[1] ** 2 - kept**2) ** 0.5

    def loss(unet, step: int) -> Tensor:
        generator = torch.Generator("cpu").manual_seed(seed * 1_000_003 + step)
        rows = torch.randint(len(latents), (BATCH,), generator=generator)
        noise = torch.cat([starting_noise(FIRST_SEED + row) for row in rows.tolist()])
        target = latents[rows].to(device)
        scene = render(attributes[rows].numpy(), layout_from_noise(noise).numpy())
        weight = latent_weights(scene).to(device)
        prompts = captions(attributes[rows].numpy())
        with torch.no_grad():
            states, pooled = encode_prompts(prompts, tokenizer, turbo.text_encoder, turbo.text_encoder_2)
        noise = noise.to(device)
        at_first = torch.zeros(BATCH, dtype=torch.int64)
        first = denoise(unet, sigmas[0] * noise, timesteps[at_first], sigmas[at_first], states, pooled)

        which = torch.randint(1, 4, (LATER,), generator=generator)
        half_or_more = 0.5 + 0.5 * torch.rand(LATER, generator=generator)
        moved = torch.where(which == 2, half_or_more, (which == 3).float())  # before the second step not at all
        seen = first[:LATER].detach().lerp(target[:LATER], moved.view(-1, 1, 1, 1).to(device))
        new = torch.randn(noise[:LATER].shape, generator=generator).to(device)
        spread = sigmas[which].view(-1, 1, 1, 1)
        second = (1 - kept / sigmas[0]) * seen + kept * noise[:LATER] + fresh * new
        sample = torch.where((which == 1).view(-1, 1, 1, 1).to(device), second, seen + spread * new)
        later = denoise(unet, sample, timesteps[which], sigmas[which], states[:LATER], pooled[:LATER])
        return _error(first, target, weight) + 0.5 * _error(later, target[:LATER], weight[:LATER])

    unet = turbo.unet.requires_grad_(True)
    turbo.unet = fit(
        "turbo", unet, loss, steps=steps, folder=folder, lr=6e-4, warmup=50, ema=0.99,
        before_step=lambda unet: turbo.hold_down(), checkpoint_every=100,
    )  # fmt: skip
    return turbo


def _error(found: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    difference = found - target
    return (weight * (difference**2 + ABSOLUTE * difference.abs())).mean()
