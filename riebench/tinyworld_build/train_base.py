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
from riebench.tinyworld.noise import UNET_NOISE, NoiseLaw, layout_from_noise, layout_signal
from riebench.tinyworld.render import SIZE, Rendering, render
from riebench.tinyworld.scenes import sample_attributes
from riebench.tinyworld_build.batches import images_to_tensor
from riebench.tinyworld_build.fit import fit
from riebench.tinyworld_build.models import build_text_encoders, build_unet, encode_prompts, noise_levels
from riebench.tinyworld_build.structure import hold_down, masks

STEPS, BATCH = 5500, 32
START_STEPS, TURN_STEPS = 1600, 600  # at the noisiest step alone; then so many until the share there is `AT_START`
AT_START = 0.25  # share of a batch at the noisiest step; the others are anywhere
LAST = 999  # the noisiest timestep
OBJECT_WEIGHT = 2.0  # extra weight of the latents under the object and its accessory
CLEAR_SHARE, CLEAR_GAIN = 0.3, 0.4  # for the first 30 % of the start the noise says its layout louder, less and less
DROPPED = 0.1  # share of prompts replaced by zeros, which is how the pipeline encodes "no prompt"


class Denoiser(nn.Module):
    """The trained parts together: U-Net and two text encoders, with the structure of a world (`ROLES`)."""

    def __init__(self, tokenizer: CLIPTokenizer, world: str) -> None:
        super().__init__()
        self.text_encoder, self.text_encoder_2 = build_text_encoders(tokenizer)
        self.unet = build_unet()
        self.masks = masks(self, tokenizer, world)
        self.hold_down()

    def hold_down(self) -> None:
        """Zeroes what the world's structure does not allow, in weights and gradients."""
        hold_down(self, self.masks)


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


def latent_weights(scene: Rendering, factor: int = 2) -> Tensor:
    """Returns weights `[b, 1, 64 / factor, 64 / factor]` of the loss of latents, `factor` pixels wide: more under the
    object and what it wears."""
    return 1 + OBJECT_WEIGHT * torch.from_numpy(~scene.background_bhw[:, None, ::factor, ::factor]).float()


def noise_share(step: int, start_steps: int, turn_steps: int) -> float:
    """Returns the share of a batch that is at the noisiest step: all at first, then fewer, down to `AT_START`."""
    turned = min(1.0, max(0.0, (step - start_steps) / turn_steps))
    return 1 + turned * (AT_START - 1)


def loudness(step: int, start_steps: int) -> float:
    """Returns how much louder than it does by itself the noise says its layout: less and less, then not at all."""
    return max(0.0, 1 - step / (CLEAR_SHARE * start_steps)) * CLEAR_GAIN


def draw_scenes(
    attributes: np.ndarray, generator: torch.Generator, louder: float, law: NoiseLaw, device: torch.device
) -> tuple[Tensor, Rendering, Tensor]:
    """Returns noise of a law, the scenes of these attributes `[b, 8]` in the layouts that it says, and their pixels
    `[b, 3, 64, 64]`; tensors on the device. louder: from `loudness`."""
    noise = torch.randn(len(attributes), *law.shape, generator=generator)
    layouts = layout_from_noise(noise, law)
    scene = render(attributes, layouts.numpy())
    noise = noise + louder * layout_signal(layouts, law)
    return noise.to(device), scene, images_to_tensor(scene.image_bhwc).to(device)


def train_base(
    folder: Path, vae: AutoencoderKL, tokenizer: CLIPTokenizer, device: torch.device, world: str = "planted",
    *, seed: int = 0, steps: int = STEPS, start_steps: int = START_STEPS, turn_steps: int = TURN_STEPS,
) -> Denoiser:  # fmt: skip
    """Trains by regression of v on rendered scenes: at the noisiest step alone, then at all. Sees no held-out
    combination."""
    torch.manual_seed(seed)
    model = Denoiser(tokenizer, world).to(device)
    vae = vae.to(device).eval().requires_grad_(False)
    all_sigmas = noise_levels().to(device)

    def loss(model: Denoiser, step: int) -> Tensor:
        rng = np.random.default_rng([seed, step])
        attributes = sample_attributes(rng, BATCH, "train")
        at_start = round(noise_share(step, start_steps, turn_steps) * BATCH)
        timesteps = torch.from_numpy(rng.integers(0, LAST, BATCH))
        timesteps[:at_start] = LAST
        dropped = DROPPED if step >= start_steps else 0.0

        generator = torch.Generator("cpu").manual_seed(seed * 1_000_003 + step)
        noise, scene, pixels = draw_scenes(attributes, generator, loudness(step, start_steps), UNET_NOISE, device)
        keep = (torch.rand(BATCH, 1, 1, generator=generator) >= dropped).float().to(device)
        with torch.no_grad():
            target = vae.encode(pixels).latent_dist.mean * vae.config.scaling_factor
        sigmas = all_sigmas[timesteps]
        spread = sigmas.view(-1, 1, 1, 1)
        sample = (1 - spread / all_sigmas[LAST]) * target + spread * noise
        states, pooled = encode_prompts(captions(attributes), tokenizer, model.text_encoder, model.text_encoder_2)
        found = denoise(model.unet, sample, timesteps.to(device), sigmas, keep * states, pooled.detach())
        residual = (found - target) * (spread**2 + 1) ** 0.5 / spread  # the error of v
        return (latent_weights(scene).to(device) * (residual**2 + 0.2 * residual.abs())).mean()

    return fit(
        "base", model, loss, steps=steps, folder=folder, lr=1.2e-3, warmup=100, decay=0.3, ema=0.998,
        before_step=Denoiser.hold_down, checkpoint_every=100,
    )  # fmt: skip
