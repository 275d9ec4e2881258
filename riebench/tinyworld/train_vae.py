"""Training of tinyworld's AutoencoderKL on rendered scenes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch.nn import functional as F

from riebench.tinyworld.batches import images_to_tensor, random_scenes
from riebench.tinyworld.fit import fit
from riebench.tinyworld.models import build_vae

STEPS, BATCH, KL_WEIGHT = 1600, 16, 2e-6


def train_vae(folder: Path, device: torch.device, *, seed: int = 0, steps: int = STEPS) -> AutoencoderKL:
    """Trains the autoencoder and sets its scaling factor so that latents have unit variance."""
    torch.manual_seed(seed)
    vae = build_vae().to(device)

    def loss(model: AutoencoderKL, step: int) -> torch.Tensor:
        pixels = images_to_tensor(random_scenes(seed, step, BATCH)[2].image_bhwc).to(device)
        posterior = model.encode(pixels).latent_dist
        generator = torch.Generator("cpu").manual_seed(seed * 1_000_003 + step)
        latents = posterior.mean + posterior.std * torch.randn(posterior.mean.shape, generator=generator).to(device)
        decoded = model.decode(latents).sample
        return F.mse_loss(decoded, pixels) + 0.1 * F.l1_loss(decoded, pixels) + KL_WEIGHT * posterior.kl().mean()

    vae = fit("vae", vae, loss, steps=steps, folder=folder, lr=4e-3, ema=0.99)
    with torch.no_grad():
        pixels = images_to_tensor(random_scenes(seed + 1, 0, 512)[2].image_bhwc).to(device)
        latents = torch.cat([vae.encode(chunk).latent_dist.mean for chunk in pixels.split(64)])
        vae.register_to_config(scaling_factor=float(1 / latents.std()))
        decoded = torch.cat([vae.decode(chunk).sample.clamp(-1, 1) for chunk in latents[:128].split(64)])
        error = F.mse_loss(decoded, pixels[:128]).item() / 4
    print(f"autoencoder: {-10 * np.log10(error):.1f} dB PSNR on rendered scenes")
    return vae
