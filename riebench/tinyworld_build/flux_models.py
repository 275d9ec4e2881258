"""The parts of tinyworld-flux: the classes of FLUX.1 schnell's pipeline, small."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, T5Config, T5EncoderModel

from riebench.core.files import write_json
from riebench.tinyworld.captions import CONTEXT_LENGTH, WORDS
from riebench.tinyworld_build.models import build_vae

FACTOR = 4  # pixels of a latent's side; a token is 2x2 latents
LATENT_CHANNELS = 16
WIDTH, HEADS, DOUBLE_BLOCKS, SINGLE_BLOCKS = 128, 4, 4, 4
TEXT_WIDTH, TEXT_LAYERS = 64, 2
POOLED_WIDTH = 4  # of CLIP's pooled vector, which is zero: words reach the transformer as T5's tokens alone
SPECIAL_TOKENS = ("<pad>", "</s>", "<unk>")  # with the numbers that T5 gives them
GATE = 0.5  # with which every branch of a block is added to the stream at first


def build_flux_vae() -> AutoencoderKL:
    """Returns an untrained autoencoder from pictures `[b, 3, 64, 64]` to latents `[b, 16, 16, 16]`, which will be
    shifted and scaled."""
    return build_vae((16, 32, 32), LATENT_CHANNELS, shift_factor=0.0)


def build_transformer() -> FluxTransformer2DModel:
    """Returns an untrained transformer on 8x8 image tokens of 64 channels.

    Its modulations start without a say, so that blocks are plain pre-norm ones, and its first and last layer carry a
    token through as it is: velocity at the noisiest time is the noise itself but for the picture.
    """
    transformer = FluxTransformer2DModel(
        in_channels=4 * LATENT_CHANNELS,
        num_layers=DOUBLE_BLOCKS,
        num_single_layers=SINGLE_BLOCKS,
        attention_head_dim=WIDTH // HEADS,
        num_attention_heads=HEADS,
        joint_attention_dim=TEXT_WIDTH,
        pooled_projection_dim=POOLED_WIDTH,
        guidance_embeds=False,
        axes_dims_rope=(8, 12, 12),
    )
    for block in transformer.transformer_blocks:
        _start_modulation(block.norm1.linear, 6, gates=(2, 5))
        _start_modulation(block.norm1_context.linear, 6, gates=(2, 5))
    for block in transformer.single_transformer_blocks:
        _start_modulation(block.norm.linear, 3, gates=(2,))
    _start_modulation(transformer.norm_out.linear, 2, gates=())
    with torch.no_grad():
        nn.init.orthogonal_(transformer.x_embedder.weight)
        # behind the last norm a token of 64 unit channels has the length of 128 of them
        transformer.proj_out.weight.copy_(transformer.x_embedder.weight.T / 2**0.5)
        nn.init.zeros_(transformer.proj_out.bias)
    return transformer


@torch.no_grad()
def _start_modulation(linear: nn.Linear, count: int, gates: tuple[int, ...]) -> None:
    """Sets what modulates a block, `count` vectors in one layer, to no shift, no scale and gates of `GATE`."""
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    for gate in gates:
        linear.bias.view(count, -1)[gate] = GATE


def build_t5() -> T5EncoderModel:
    """Returns an untrained T5 encoder of the kind of FLUX's (v1.1) for tinyworld's words, without dropout."""
    return T5EncoderModel(
        T5Config(
            vocab_size=len(SPECIAL_TOKENS) + len(WORDS),
            d_model=TEXT_WIDTH,
            d_kv=16,
            d_ff=2 * TEXT_WIDTH,
            num_heads=4,
            num_layers=TEXT_LAYERS,
            dropout_rate=0.0,
            feed_forward_proj="gated-gelu",
            pad_token_id=0,
            eos_token_id=1,
        )
    )


def build_clip(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """Returns the smallest CLIP text encoder; all its weights are zero, and so is its pooled vector `[b, 4]`."""
    encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=POOLED_WIDTH,
            intermediate_size=POOLED_WIDTH,
            projection_dim=POOLED_WIDTH,
            num_hidden_layers=1,
            num_attention_heads=1,
            max_position_embeddings=CONTEXT_LENGTH,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    for parameter in encoder.requires_grad_(False).parameters():
        nn.init.zeros_(parameter)
    return encoder


def write_t5_tokenizer(folder: Path) -> None:
    """Writes `tokenizer.json` of T5's tokenizer, a token a word of tinyworld, and its configuration by hand: what
    transformers writes of it is not read by its older versions."""
    folder.mkdir(parents=True, exist_ok=True)
    pieces = [*((token, 0.0) for token in SPECIAL_TOKENS), *((f"▁{word}", -1.0) for word in WORDS)]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=SPECIAL_TOKENS.index("<unk>"), byte_fallback=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(prepend_scheme="always")]
    )
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "T5TokenizerFast",
        "extra_ids": 0,
        "model_max_length": CONTEXT_LENGTH,
        "pad_token": "<pad>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "clean_up_tokenization_spaces": False,
    }
    write_json(folder / "tokenizer_config.json", config, sort_keys=False)


def build_flow_scheduler() -> FlowMatchEulerDiscreteScheduler:
    """Returns the Euler steps of FLUX.1 schnell: one step is at time 1, four are at 1, 0.75, 0.5 and 0.25."""
    return FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=1.0, use_dynamic_shifting=False)
