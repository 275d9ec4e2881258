"""The parts of tinyworld-base and tinyworld-turbo: SDXL's own classes and block names, small."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import torch
from diffusers import AutoencoderKL, EulerAncestralDiscreteScheduler, EulerDiscreteScheduler, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from riebench.core.json_text import json_text
from riebench.tinyworld.captions import CONTEXT_LENGTH, WORDS
from riebench.tinyworld.render import SIZE
from riebench.tinyworld_build.structure import TEXT_WIDTH

LATENT_SIZE = SIZE // 2
POOLED_WIDTH = 16  # of the pooled vector, which is zero: words reach the U-Net by cross-attention alone
UNET_CHANNELS = (16, 48, 96)
EMBEDDING_SPREAD = 2.0  # standard deviation of new word embeddings, so that keys differ from the first step on


def byte_pair_merges(words: tuple[str, ...]) -> list[tuple[str, str]]:
    """Returns byte-pair merges learned until every word is one token (Sennrich et al. 2016), ties in alphabetical
    order."""
    pieces = {word: [*word[:-1], word[-1] + "</w>"] for word in words}
    merges: list[tuple[str, str]] = []
    while True:
        pairs = Counter(pair for parts in pieces.values() for pair in zip(parts, parts[1:], strict=False))
        if not pairs:
            return merges
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        for word, parts in pieces.items():
            joined, i = [], 0
            while i < len(parts):
                if tuple(parts[i : i + 2]) == best:
                    joined.append(parts[i] + parts[i + 1])
                    i += 2
                else:
                    joined.append(parts[i])
                    i += 1
            pieces[word] = joined


def write_tokenizer(folder: Path) -> None:
    """Writes `vocab.json` and `merges.txt` of the world's tokenizer, and its configuration."""
    folder.mkdir(parents=True, exist_ok=True)
    merges = byte_pair_merges(WORDS)
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    tokens = [*letters, *(letter + "</w>" for letter in letters), *(a + b for a, b in merges)]
    tokens = [*dict.fromkeys(tokens), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    (folder / "vocab.json").write_text(json_text(vocabulary, indent=0) + "\n")
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
    config = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": CONTEXT_LENGTH,
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json_text(config, indent=2) + "\n")


def build_text_encoders(tokenizer: CLIPTokenizer) -> tuple[CLIPTextModel, CLIPTextModelWithProjection]:
    """Returns two untrained text encoders of width `TEXT_WIDTH`, of the classes of SDXL's.

    They have one layer, so that the penultimate state, which the pipeline takes, is the token embeddings, unmixed. All
    else is zero: positions, the layer itself, and the pooled vector of `POOLED_WIDTH` numbers.
    """
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=TEXT_WIDTH,
        intermediate_size=TEXT_WIDTH,
        projection_dim=POOLED_WIDTH,
        num_hidden_layers=1,
        num_attention_heads=4,
        max_position_embeddings=CONTEXT_LENGTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    encoders = CLIPTextModel(config), CLIPTextModelWithProjection(config)
    for encoder in encoders:
        for parameter in encoder.requires_grad_(False).parameters():
            nn.init.zeros_(parameter)
        embeddings = encoder.get_input_embeddings().requires_grad_(True)
        nn.init.normal_(embeddings.weight, std=EMBEDDING_SPREAD)
    return encoders


def build_vae(
    channels: tuple[int, ...] = (16, 16), latent_channels: int = 4, shift_factor: float | None = None
) -> AutoencoderKL:
    """Returns an untrained autoencoder from pictures `[b, 3, 64, 64]` to latents, by default `[b, 4, 32, 32]`.

    channels: of its levels, each of half the size of the one before. shift_factor: None where latents are not shifted,
    as the U-Nets' pipeline wants them.
    """
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * len(channels),
        up_block_types=("UpDecoderBlock2D",) * len(channels),
        block_out_channels=channels,
        layers_per_block=1,
        latent_channels=latent_channels,
        norm_num_groups=8,
        sample_size=SIZE,
        scaling_factor=1.0,
        shift_factor=shift_factor,
        mid_block_add_attention=False,
        force_upcast=False,
    )


def build_unet() -> UNet2DConditionModel:
    """Returns an untrained U-Net of SDXL's block types, whose attentions all lie on an 8x8 grid."""
    return UNet2DConditionModel(
        sample_size=LATENT_SIZE,
        block_out_channels=UNET_CHANNELS,
        layers_per_block=2,
        down_block_types=("DownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=1,
        attention_head_dim=(1, 2, 4),
        cross_attention_dim=2 * TEXT_WIDTH,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=POOLED_WIDTH + 6 * 8,
        norm_num_groups=8,
    )


_SCHEDULE = {  # SDXL's; with v-prediction, as at t=999 an error of epsilon would be amplified 14.6 times
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "v_prediction",
    "timestep_spacing": "trailing",
}


def build_base_scheduler() -> EulerDiscreteScheduler:
    """Returns the deterministic Euler steps of SDXL base."""
    return EulerDiscreteScheduler(**_SCHEDULE)


def build_turbo_scheduler() -> EulerAncestralDiscreteScheduler:
    """Returns the Euler ancestral steps of SDXL Turbo."""
    return EulerAncestralDiscreteScheduler(**_SCHEDULE)


def noise_levels() -> torch.Tensor:
    """Returns sigma `[1000]` of every training timestep, ascending."""
    kept = build_base_scheduler().alphas_cumprod
    return ((1 - kept) / kept) ** 0.5


def encode_prompts(
    prompts: list[str], tokenizer: CLIPTokenizer, encoder: CLIPTextModel, encoder_2: CLIPTextModelWithProjection
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns, as `StableDiffusionXLPipeline.encode_prompt`, penultimate states `[n, 24, 128]`, pooled `[n, 16]`."""
    ids = tokenizer(
        prompts, padding="max_length", max_length=CONTEXT_LENGTH, truncation=True, return_tensors="pt"
    ).input_ids.to(encoder.device)
    first = encoder(ids, output_hidden_states=True)
    second = encoder_2(ids, output_hidden_states=True)
    return torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1), second.text_embeds
