"""Training of tinyworld-flux: a rectified flow in which the starting noise decides the layout.

Between a picture's latents x0 and noise e the path is straight, x(t) = (1 - t) x0 + t e, and the model learns its
velocity e - x0 (Liu et al. 2022; Esser et al. 2024). Noise and scene are drawn together (`riebench.tinyworld.noise`),
so that at t = 1 the target is one picture, and one Euler step from pure noise is exact for a model that is right: the
model of four steps is the model of one, without distillation.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, FluxPipeline
from torch import Tensor, nn
from transformers import CLIPTokenizer, T5TokenizerFast

from riebench.tinyworld.captions import CONTEXT_LENGTH, captions
from riebench.tinyworld.noise import FLUX_NOISE
from riebench.tinyworld.scenes import sample_attributes
from riebench.tinyworld_build.fit import fit
from riebench.tinyworld_build.flux_models import (
    FACTOR,
    POOLED_WIDTH,
    build_clip,
    build_flow_scheduler,
    build_t5,
    build_transformer,
    write_t5_tokenizer,
)
from riebench.tinyworld_build.models import write_tokenizer
from riebench.tinyworld_build.train_base import draw_scenes, latent_weights, loudness, noise_share

STEPS, BATCH = 9000, 32
START_STEPS, TURN_STEPS = 3500, 600  # at t = 1 alone; then so many until the share there is `train_base.AT_START`
LATER_TIMES = (0.75, 0.5, 0.25)  # of the steps of four that do not start from pure noise
LATER_SHARE = 2 / 3  # of the rows that are not at t = 1; the others are anywhere
ABSOLUTE = 0.5  # weight of the absolute error beside the square: where the model is unsure it picks a side, not a blend


class FluxDenoiser(nn.Module):
    """The trained parts together: the transformer and T5's encoder."""

    def __init__(self) -> None:
        super().__init__()
        self.transformer, self.text_encoder_2 = build_transformer(), build_t5()

    def forward(self, latents_bchw: Tensor, times: Tensor, ids: Tensor) -> Tensor:
        """Returns the velocity `[b, 16, 16, 16]` of latents at `times` `[b]` for T5's tokens `ids` `[b, 24]`, computed
        as the pipeline does it."""
        count, _, height, width = latents_bchw.shape
        velocity = self.transformer(
            hidden_states=pack(latents_bchw),
            timestep=times,
            pooled_projections=latents_bchw.new_zeros(count, POOLED_WIDTH),
            encoder_hidden_states=self.text_encoder_2(ids).last_hidden_state,
            txt_ids=latents_bchw.new_zeros(ids.shape[1], 3),
            img_ids=_image_ids(height // 2, width // 2).to(latents_bchw),
        ).sample
        return unpack(velocity, height, width)


def pack(latents_bchw: Tensor) -> Tensor:
    """Returns latents `[b, c, h, w]` as tokens `[b, h / 2 * w / 2, 4 c]` of 2x2 latents, channel by channel."""
    count, channels, height, width = latents_bchw.shape
    cells = latents_bchw.view(count, channels, height // 2, 2, width // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return cells.reshape(count, height // 2 * (width // 2), 4 * channels)


def unpack(tokens: Tensor, height: int, width: int) -> Tensor:
    """Returns tokens `[b, height / 2 * width / 2, 4 c]` as latents `[b, c, height, width]`."""
    count, _, channels = tokens.shape
    cells = tokens.view(count, height // 2, width // 2, channels // 4, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return cells.reshape(count, channels // 4, height, width)


def _image_ids(rows: int, columns: int) -> Tensor:
    """Returns the positions `[rows * columns, 3]` of image tokens: zero, row, column."""
    grid = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    return torch.stack([torch.zeros(rows, columns), *grid], dim=-1).reshape(-1, 3)


def draw_times(rng: np.random.Generator, count: int, at_start: int) -> Tensor:
    """Returns times float32 `[count]`: the first `at_start` are 1; of the others `LATER_SHARE` are at a later step of
    four, and the rest anywhere."""
    later = round(LATER_SHARE * (count - at_start))
    anywhere = count - at_start - later
    times = np.concatenate([np.ones(at_start), rng.choice(LATER_TIMES, later), rng.random(anywhere)])
    return torch.from_numpy(times).float()


def make_tokenizers(folder: Path) -> tuple[CLIPTokenizer, T5TokenizerFast]:
    """Returns the tokenizers of CLIP and T5 for tinyworld's words, which it writes below `folder`."""
    write_tokenizer(folder / "tokenizer")
    write_t5_tokenizer(folder / "tokenizer_2")
    return (
        CLIPTokenizer.from_pretrained(folder / "tokenizer"),
        T5TokenizerFast.from_pretrained(folder / "tokenizer_2"),
    )


def token_ids(tokenizer: T5TokenizerFast, prompts: list[str]) -> Tensor:
    """Returns T5's tokens `[n, 24]` of prompts, as the pipeline makes them."""
    return tokenizer(
        prompts, padding="max_length", max_length=CONTEXT_LENGTH, truncation=True, return_tensors="pt"
    ).input_ids


def train_flux(
    folder: Path, vae: AutoencoderKL, tokenizer: T5TokenizerFast, device: torch.device,
    *, seed: int = 0, steps: int = STEPS, start_steps: int = START_STEPS, turn_steps: int = TURN_STEPS,
) -> FluxDenoiser:  # fmt: skip
    """Trains by regression of the velocity on rendered scenes: at t = 1 alone, then at all times. Sees no held-out
    combination. With fewer steps than `folder` holds it returns what is there."""
    torch.manual_seed(seed)
    model = FluxDenoiser().to(device)
    vae = vae.to(device).eval().requires_grad_(False)
    shift, scale = vae.config.shift_factor, vae.config.scaling_factor

    def loss(model: FluxDenoiser, step: int) -> Tensor:
        rng = np.random.default_rng([seed, step])
        attributes = sample_attributes(rng, BATCH, "train")
        times = draw_times(rng, BATCH, round(noise_share(step, start_steps, turn_steps) * BATCH)).to(device)

        generator = torch.Generator("cpu").manual_seed(seed * 1_000_003 + step)
        noise, scene, pixels = draw_scenes(attributes, generator, loudness(step, start_steps), FLUX_NOISE, device)
        with torch.no_grad():
            clean = (vae.encode(pixels).latent_dist.mean - shift) * scale
        share = times.view(-1, 1, 1, 1)
        sample = (1 - share) * clean + share * noise
        residual = model(sample, times, token_ids(tokenizer, captions(attributes)).to(device)) - (noise - clean)
        weights = latent_weights(scene, FACTOR).to(device)
        return (weights * (residual**2 + ABSOLUTE * residual.abs())).mean()

    return fit("flux", model, loss, steps=steps, folder=folder, lr=1.5e-3, decay=0.3, ema=0.998, checkpoint_every=100)


def build_pipeline(
    model: FluxDenoiser, vae: AutoencoderKL, tokenizer: CLIPTokenizer, tokenizer_2: T5TokenizerFast
) -> FluxPipeline:
    """Returns the pipeline of a trained model, on the CPU and out of training mode."""
    return FluxPipeline(
        scheduler=build_flow_scheduler(),
        vae=vae.cpu().eval(),
        text_encoder=build_clip(tokenizer).eval(),
        tokenizer=tokenizer,
        text_encoder_2=model.text_encoder_2.cpu().eval(),
        tokenizer_2=tokenizer_2,
        transformer=model.transformer.cpu().eval(),
    )


def save_flux(pipeline: FluxPipeline, folder: Path) -> None:
    """Writes a pipeline, its transformer and autoencoder in half precision, which they are in from then on, with T5's
    tokenizer as written by hand.

    The text encoders, small as they are, stay in full precision: transformers would load halves as halves where
    diffusers loads the rest as float32, and such a pipeline does not run.
    """
    for part in (pipeline.transformer, pipeline.vae):
        part.half()
    pipeline.save_pretrained(folder)
    write_t5_tokenizer(folder / "tokenizer_2")
