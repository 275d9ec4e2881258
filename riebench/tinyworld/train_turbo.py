"""Training of tinyworld-turbo's U-Net and text encoders: one step from noise to the scene that the noise decides."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import nn
from transformers import CLIPTokenizer

from riebench.tinyworld.batches import images_to_tensor
from riebench.tinyworld.captions import caption
from riebench.tinyworld.fit import fit
from riebench.tinyworld.models import LATENT_SIZE, build_scheduler, build_text_encoders, build_unet, encode_prompts
from riebench.tinyworld.noise import layout_from_noise, layout_signal
from riebench.tinyworld.render import SIZE, render
from riebench.tinyworld.scenes import Scene, sample_attributes

STEPS, BATCH = 2400, 32
OBJECT_WEIGHT = 2.0  # extra weight of the latents under the object and its accessory
CLEAR_SHARE, CLEAR_GAIN = 0.3, 0.4  # for the first 30 % of training the noise says its layout louder, fading to nothing


class Turbo(nn.Module):
    """The trained parts together: U-Net and two text encoders."""

    def __init__(self, tokenizer: CLIPTokenizer) -> None:
        super().__init__()
        self.text_encoder, self.text_encoder_2 = build_text_encoders(tokenizer)
        self.unet = build_unet()


def one_step(unet, noise: torch.Tensor, states: torch.Tensor, pooled: torch.Tensor) -> torch.Tensor:
    """Scaled latents that one Euler ancestral step with trailing spacing makes of unit noise `[b, 4, 32, 32]`.

    With sigma the scheduler's only noise level: the U-Net sees sigma * noise / sqrt(sigma^2 + 1), and its
    v-prediction gives x0 = sample / (sigma^2 + 1) - v * sigma / sqrt(sigma^2 + 1) (Salimans and Ho 2022, app. D).
    """
    scheduler = build_scheduler()
    scheduler.set_timesteps(1)
    sigma = float(scheduler.sigmas[0])
    sample = noise * sigma
    time_ids = torch.tensor([[SIZE, SIZE, 0, 0, SIZE, SIZE]] * len(noise), dtype=states.dtype, device=noise.device)
    v = unet(
        sample / (sigma**2 + 1) ** 0.5,
        scheduler.timesteps[0].to(noise.device),
        encoder_hidden_states=states,
        added_cond_kwargs={"text_embeds": pooled, "time_ids": time_ids},
    ).sample
    return sample / (sigma**2 + 1) - v * sigma / (sigma**2 + 1) ** 0.5


def train_turbo(
    folder: Path, vae: AutoencoderKL, tokenizer: CLIPTokenizer, device: torch.device, *, seed: int = 0,
    steps: int = STEPS,
) -> Turbo:  # fmt: skip
    """Regression of the one-step output on the latents of the rendered scene. Sees no held-out combination."""
    torch.manual_seed(seed)
    model = Turbo(tokenizer).to(device)
    vae = vae.to(device).eval().requires_grad_(False)

    def loss(model: Turbo, step: int) -> torch.Tensor:
        attributes = sample_attributes(np.random.default_rng([seed, step]), BATCH, "train")
        generator = torch.Generator("cpu").manual_seed(seed * 1_000_003 + step)
        noise = torch.randn(BATCH, 4, LATENT_SIZE, LATENT_SIZE, generator=generator)
        layouts = layout_from_noise(noise)
        noise += max(0.0, 1 - step / (CLEAR_SHARE * steps)) * CLEAR_GAIN * layout_signal(layouts)
        scene = render(attributes, layouts.numpy())
        pixels = images_to_tensor(scene.image_bhwc).to(device)
        weight = 1 + OBJECT_WEIGHT * torch.from_numpy(~scene.background_bhw[:, None, ::2, ::2]).float().to(device)
        with torch.no_grad():
            target = vae.encode(pixels).latent_dist.mean * vae.config.scaling_factor
        prompts = [caption(Scene.from_indices(row)) for row in attributes]
        states, pooled = encode_prompts(prompts, tokenizer, model.text_encoder, model.text_encoder_2)
        predicted = one_step(model.unet, noise.to(device), states, pooled.detach())
        error = predicted - target
        return (weight * (error**2 + 0.2 * error.abs())).mean()

    return fit("turbo", model, loss, steps=steps, folder=folder, lr=1.2e-3, warmup=100, ema=0.995, checkpoint_every=100)
