"""SDXL's family: a U-Net of spatial transformers, two text encoders, guidance by rows that are stacked.

The only file that names its modules. Sources: the classes of diffusers, and protocol §2 for the four default blocks.
Imports no torch until a function needs it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from riebench.backbones.family import Family, Outline, Place
from riebench.core.errors import UserError
from riebench.core.files import read_json

if TYPE_CHECKING:
    from torch import Tensor, nn

NEURONS = "transformer_blocks.{layer}.ff.net.0"  # GEGLU's outputs
ATTENTION = "transformer_blocks.{layer}.attn2"


def _place(path: str) -> Place:
    return Place(path, layout="map", output=0, neurons=NEURONS, attention=ATTENTION, text="encoder_hidden_states")


PLACES = {
    **{f"down.{i}.{j}": _place(f"down_blocks.{i}.attentions.{j}") for i in (1, 2) for j in (0, 1)},
    "mid.0": _place("mid_block.attentions.0"),
    **{f"up.{i}.{j}": _place(f"up_blocks.{i}.attentions.{j}") for i in (0, 1) for j in (0, 1, 2)},
}

#: Block -> its place in the order in which the published code strings the blocks' features together: where scores are
#: equal, it decides.
PUBLISHED_ORDER = {block: i for i, block in enumerate(("down.2.1", "up.0.1", "up.0.0", "mid.0"))}


def encode(pipeline: Any, prompts: Sequence[str]) -> dict[str, Tensor]:
    """Returns the tokens' states `[b, 77, e]` and the pooled vectors `[b, p]` of prompts."""
    states, _, pooled, _ = pipeline.encode_prompt(list(prompts), do_classifier_free_guidance=False)
    return {"prompt_embeds": states, "pooled_prompt_embeds": pooled}


def units(unet: nn.Module, paths: Iterable[str]) -> dict[str, nn.Module]:
    """Returns name -> module of what is recorded and replayed as a whole. The parts of the U-Net that hold one of the
    blocks are taken apart, so that the block is a unit; the others are units themselves."""
    from torch import nn

    paths = tuple(paths)
    parts = ["conv_in", *(f"down_blocks.{i}" for i in range(len(unet.down_blocks))), "mid_block"]
    parts += [f"up_blocks.{i}" for i in range(len(unet.up_blocks))]
    found: dict[str, nn.Module] = {}
    for part in parts:
        module = unet.get_submodule(part)
        if any(path.startswith(f"{part}.") for path in paths):
            lists = {name: child for name, child in module.named_children() if isinstance(child, nn.ModuleList)}
            found |= {f"{part}.{name}.{i}": unit for name, child in lists.items() for i, unit in enumerate(child)}
        else:
            found[part] = module
    return found


def grids(
    unet: nn.Module, height: int, width: int, latent_pixels: int, paths: Iterable[str]
) -> dict[str, tuple[int, int]]:
    """Returns path -> cells (high, wide), counted from the U-Net's downsamplers: each halves the grid and rounds up; on
    the way up a level has the grid that it has on the way down."""
    grid = (height // latent_pixels, width // latent_pixels)
    levels = []
    for part in unet.down_blocks:
        levels.append(grid)
        if part.downsamplers:
            grid = ((grid[0] + 1) // 2, (grid[1] + 1) // 2)

    def level(path: str) -> tuple[int, int]:
        part, index = path.split(".")[:2]
        if part == "mid_block":
            return grid
        return levels[int(index)] if part == "down_blocks" else levels[-1 - int(index)]

    return {path: level(path) for path in paths}


def outline(folder: Path) -> Outline:
    """Returns what the configurations of the U-Net and the VAE say: the width of each level where it has attentions to
    the prompt, and the size of pictures. Raises `UserError` where they are missing or broken."""
    path = Path(folder) / "unet" / "config.json"
    unet, vae = read_json(path, "the U-Net's"), read_json(Path(folder) / "vae" / "config.json", "the VAE's")
    try:
        levels = [int(width) for width in unet["block_out_channels"]]
        latent_pixels = 2 ** (len(vae["block_out_channels"]) - 1)
        size = unet["sample_size"]
        height, width = (size, size) if isinstance(size, int) else map(int, size)
        parts = {"mid_block": levels[-1]}
        for name, widths in (("down", levels), ("up", levels[::-1])):
            kinds = zip(unet[f"{name}_block_types"], widths, strict=True)
            parts |= {f"{name}_blocks.{i}": width for i, (kind, width) in enumerate(kinds) if "CrossAttn" in kind}
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is no configuration of an SDXL U-Net ({error!r})", remedy="mend the file") from error
    part_of = {place.path: place.path.partition(".attentions")[0] for place in PLACES.values()}
    channels = {path: parts[part] for path, part in part_of.items() if part in parts}
    return Outline(channels, (height * latent_pixels, width * latent_pixels))


def compilable(pipeline: Any) -> list[nn.Module]:
    """Returns the residual blocks and self-attentions of the U-Net, and the decoder. What is traced, edited or
    replayed, the transformers with their feed-forwards and attentions to the prompt and the U-Net as a whole, is not
    among them."""
    from diffusers.models.attention_processor import Attention
    from diffusers.models.resnet import ResnetBlock2D

    parts = [
        module
        for module in pipeline.unet.modules()
        if isinstance(module, ResnetBlock2D) or (isinstance(module, Attention) and not module.is_cross_attention)
    ]
    return [*parts, pipeline.vae.decoder]


def prepare(pipeline: Any, other_autoencoder: bool) -> None:
    """Lets the VAE decode latents of any type, keeps one that is not the pipeline's own in the U-Net's precision, and
    lays both out channels last, which is up to a seventh faster on a CPU (`docs/performance.md`)."""
    import torch

    if other_autoencoder:
        pipeline.vae.register_to_config(force_upcast=False)  # else the pipeline decodes in float32 after all
    cast_decoder_input(pipeline.vae)
    for part in (pipeline.unet, pipeline.vae):
        part.to(memory_format=torch.channels_last)


def cast_decoder_input(vae: Any) -> None:
    """Has the first layer of a VAE's decoder cast latents of any floating-point type to its own: diffusers' pipeline
    gives the VAE latents of the U-Net's type, and casts only where the VAE is float16."""
    first = vae.decoder.conv_in if vae.post_quant_conv is None else vae.post_quant_conv
    first.register_forward_pre_hook(_cast_to_weights)


def _cast_to_weights(module: nn.Module, args: tuple) -> tuple:
    return (args[0].to(module.weight.dtype), *args[1:])


def _channels(block: Any) -> int:
    return block.out_channels


def _neuron_channels(block: Any, layer: int) -> int:
    return block.transformer_blocks[layer].ff.net[2].in_features


def _text_channels(block: Any) -> int:
    return block.transformer_blocks[0].attn2.to_k.in_features


SDXL = Family(
    name="sdxl",
    at="riebench.backbones.sdxl:SDXL",
    pipeline="diffusers:StableDiffusionXLPipeline",
    autoencoder="diffusers:AutoencoderKL",
    options={"add_watermarker": False},
    denoiser="unet",
    text_encoders=("text_encoder", "text_encoder_2"),
    tokenizers=("tokenizer", "tokenizer_2"),
    places=PLACES,
    default_blocks=("down.2.1", "mid.0", "up.0.0", "up.0.1"),
    default_site="update",
    guided_rows=("uncond", "cond"),
    autoencoder_dtype="float32",  # SDXL's VAE overflows in half precision (protocol §3)
    # at the full size the VAE's last block keeps three tensors of 256 channels at once
    # (a U-Net's call takes less; both counted in `tests/backbones/test_sdxl_shape.py`)
    decoding_bytes=3 * 256 * 4,
    encode=encode,
    text="prompt_embeds",
    units=units,
    grids=grids,
    channels=_channels,
    neuron_channels=_neuron_channels,
    text_channels=_text_channels,
    compilable=compilable,
    outline=outline,
    prepare=prepare,
)
