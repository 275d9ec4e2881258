"""Training of tinyworld-base: a diffusion model in which the starting noise decides the layout.

Noise and scene are drawn together, so that the path between them is straight and cheap to learn (a coupling, as in
multisample flow matching: Pooladian et al. 2023, Tong et al. 2023; any coupling with Gaussian noise is sampled rightly
by the deterministic ODE). The path is the one that diffusers' Euler steps walk from pure noise when the model is right:

    x(sigma) = (1 - sigma / sigma_max) x0 + sigma * noise,

which is pure noise at sigma_max, where SDXL's own schedule would still show a trace of the picture.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn
from transformers import CLIPTokenizer

from riebench.tinyworld.captions import captions
from riebench.tinyworld.noise import LATENT_SHAPE, layout_from_noise, layout_signal
from riebench.tinyworld.render import SIZE, Rendering, render
from riebench.tinyworld.scenes import sample_attributes
from riebench.tinyworld_build.batches import images_to_tensor
from riebench.tinyworld_build.fit import fit
from riebench.tinyworld_build.models import build_text_encoders, build_unet, encode_prompts, noise_levels

START_STEPS, STEPS, FINE_STEPS, BATCH = 2400, 1800, 300, 32
LAST = 999  # the noisiest timestep
OBJECT_WEIGHT = 2.0  # extra weight of the latents under the object and its accessory
CLEAR_SHARE, CLEAR_GAIN = 0.3, 0.4  # for the first 30 % of the start the noise says its layout louder, less and less
DROPPED = 0.1  # share of prompts replaced by zeros, which is how the pipeline encodes "no prompt"
AT_START, TOWARDS_NOISE = 0.2, 0.75  # share of a batch at the noisiest step; timesteps are 999 u^0.75, u uniform
FINE_SHARE, FINE_LAST = 0.75, 500  # at last, so much of a batch is below this timestep, where grain is removed


class Denoiser(nn.Module):
    """The trained parts together: U-Net and two text encoders."""

    def __init__(self, tokenizer: CLIPTokenizer) -> None:
        super().__init__()
        self.text_encoder, self.text_encoder_2 = build_text_encoders(tokenizer)
        self.unet = build_unet()


def denoise(unet, sample: Tensor, timesteps: Tensor, sigmas: Tensor, states: Tensor, pooled: Tensor) -> Tensor:
    """Returns the clean latents x0 `[b, 4, 32, 32]` that the U-Net's prediction stands for.

    sample: latents `[b, 4, 32, 32]` at noise levels `sigmas` `[b]`, not yet scaled for the U-Net. With v-prediction
    x0 = sample / (sigma^2 + 1) - v * sigma / sqrt(sigma^2 + 1) (Salimans and Ho 2022, app. D), as in diffusers.
    """
    sigmas = sigmas.view(-1, 1, 1, 1)
    time_ids = torch.tensor([[SIZE, SIZE, 0, 0, SIZE, SIZE]] * len(sample), dtype=states.dtype, device=sample.device)
    v = unet(
        sample / (sigmas**2 + 1) ** 0.5,
        timesteps,
        encoder_hidden_states=states,
        added_cond_kwargs={"text_embeds": pooled, "time_ids": time_ids},
    ).sample
    return sample / (sigmas**2 + 1) - v * sigmas / (sigmas**2 + 1) ** 0.5


def latent_weights(scene: Rendering) -> Tensor:
    """Returns weights `[b, 1, 32, 32]` of the loss: more under the object and what it wears."""
    return 1 + OBJECT_WEIGHT * torch.from_numpy(~scene.background_bhw[:, None, ::2, ::2]).float()


def train_base(
    folder: Path, vae: AutoencoderKL, tokenizer: CLIPTokenizer, device: torch.device, *, seed: int = 0,
    start_steps: int = START_STEPS, steps: int = STEPS, fine_steps: int = FINE_STEPS,
) -> Denoiser:  # fmt: skip
    """Trains by regression of v on rendered scenes: at the noisiest step alone, then at all, at last mostly at the less
    noisy. Sees no held-out combination."""
    torch.manual_seed(seed)
    model = Denoiser(tokenizer).to(device)
    vae = vae.to(device).eval().requires_grad_(False)
    all_sigmas = noise_levels().to(device)

    def error(model: Denoiser, seed: int, step: int, timesteps: Tensor, clear: float, dropped: float) -> Tensor:
        attributes = sample_attributes(np.random.default_rng([seed, step]), BATCH, "train")
        generator = torch.Generator("cpu").manual_seed(seed * 1_000_003 + step)
        noise = torch.randn(BATCH, *LATENT_SHAPE, generator=generator)
        keep = (torch.rand(BATCH, 1, generator=generator) >= dropped).float().to(device)
        layouts = layout_from_noise(noise)
        noise = (noise + clear * layout_signal(layouts)).to(device)
        scene = render(attributes, layouts.numpy())
        weight = latent_weights(scene).to(device)
        with torch.no_grad():
            pixels = images_to_tensor(scene.image_bhwc).to(device)
            target = vae.encode(pixels).latent_dist.mean * vae.config.scaling_factor
        sigmas = all_sigmas[timesteps]
        spread = sigmas.view(-1, 1, 1, 1)
        sample = (1 - spread / all_sigmas[LAST]) * target + spread * noise
        prompts = captions(attributes)
        states, pooled = encode_prompts(prompts, tokenizer, model.text_encoder, model.text_encoder_2)
        found = denoise(
            model.unet, sample, timesteps.to(device), sigmas, keep[:, None] * states, keep * pooled.detach()
        )
        residual = (found - target) * (spread**2 + 1) ** 0.5 / spread  # the error of v
        return (weight * (residual**2 + 0.2 * residual.abs())).mean()

    def at_start(model: Denoiser, step: int) -> Tensor:
        clear = max(0.0, 1 - step / (CLEAR_SHARE * start_steps)) * CLEAR_GAIN
        return error(model, seed, step, torch.full((BATCH,), LAST), clear, 0.0)

    def some_timesteps(seed: int, step: int) -> Tensor:
        rng = np.random.default_rng([seed, step, 1])
        timesteps = torch.from_numpy((LAST * rng.random(BATCH) ** TOWARDS_NOISE).astype(np.int64))
        timesteps[: round(AT_START * BATCH)] = LAST
        return timesteps

    def anywhere(model: Denoiser, step: int) -> Tensor:
        return error(model, seed + 1, step, some_timesteps(seed + 1, step), 0.0, DROPPED)

    def fine(model: Denoiser, step: int) -> Tensor:
        timesteps = some_timesteps(seed + 2, step).flip(0)
        few = round(FINE_SHARE * BATCH)
        timesteps[:few] %= FINE_LAST
        return error(model, seed + 2, step, timesteps, 0.0, DROPPED)

    common = {"folder": folder, "warmup": 100, "checkpoint_every": 100}
    model = fit("base-start", model, at_start, steps=start_steps, lr=1.2e-3, ema=0.995, **common).requires_grad_(True)
    model = fit("base", model, anywhere, steps=steps, lr=1e-3, ema=0.995, **common).requires_grad_(True)
    return fit("base-fine", model, fine, steps=fine_steps, lr=5e-4, ema=0.98, **common)
