"""Training of tinyworld's autoencoders on rendered scenes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch.nn import functional as F

from riebench.tinyworld_build.batches import images_to_tensor, random_scenes
from riebench.tinyworld_build.fit import fit
from riebench.tinyworld_build.models import build_vae

STEPS, DECODER_STEPS, BATCH, KL_WEIGHT = 1600, 1000, 16, 2e-6
DECODER_NOISE = 0.1  # of the latents' spread, added when the decoder is trained on: a U-Net's latents are not exact


def train_vae(
    folder: Path, device: torch.device, build: Callable[[], AutoencoderKL] = build_vae,
    *, seed: int = 0, steps: int = STEPS, decoder_steps: int = DECODER_STEPS,
) -> AutoencoderKL:  # fmt: skip
    """Trains the autoencoder that `build` returns, sets its scaling factor for latents of unit variance, and of mean
    zero where its shift factor is a number, then trains the decoder on."""
    torch.manual_seed(seed)
    vae = build().to(device)

    def pixels_of(seed: int, step: int, count: int = BATCH) -> torch.Tensor:
        return images_to_tensor(random_scenes(seed, step, count)[2].image_bhwc).to(device)

    def noise(shape: torch.Size, step: int) -> torch.Tensor:
        return torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed * 1_000_003 + step)).to(device)

    def both(model: AutoencoderKL, step: int) -> torch.Tensor:
        pixels = pixels_of(seed, step)
        posterior = model.encode(pixels).latent_dist
        decoded = model.decode(posterior.mean + posterior.std * noise(posterior.mean.shape, step)).sample
        return _difference(decoded, pixels) + KL_WEIGHT * posterior.kl().mean()

    vae = fit("vae", vae, both, steps=steps, folder=folder, lr=4e-3, ema=0.99)
    with torch.no_grad():
        pixels = pixels_of(seed + 1, 0, 512)
        latents = torch.cat([vae.encode(chunk).latent_dist.mean for chunk in pixels.split(64)])
    vae.register_to_config(scaling_factor=float(1 / latents.std()))
    if vae.config.shift_factor is not None:
        vae.register_to_config(shift_factor=float(latents.mean()))

    def decoder_alone(model: AutoencoderKL, step: int) -> torch.Tensor:
        pixels = pixels_of(seed + 2, step)
        with torch.no_grad():
            mean = model.encode(pixels).latent_dist.mean
        spread = DECODER_NOISE / model.config.scaling_factor
        return _difference(model.decode(mean + spread * noise(mean.shape, step)).sample, pixels)

    for part in (vae.decoder, vae.post_quant_conv):
        part.requires_grad_(True)
    vae = fit("vae-decoder", vae, decoder_alone, steps=decoder_steps, folder=folder, lr=3e-3, warmup=50, ema=0.99)
    with torch.no_grad():
        decoded = torch.cat([vae.decode(chunk).sample.clamp(-1, 1) for chunk in latents[:128].split(64)])
    error = F.mse_loss(decoded, pixels[:128]).item() / 4
    print(f"autoencoder: {-10 * np.log10(error):.1f} dB PSNR on rendered scenes")
    return vae


def _difference(decoded: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
    return F.mse_loss(decoded, pixels) + 0.1 * F.l1_loss(decoded, pixels)
