"""Where a word may enter a planted world's U-Net: fixed by zeros in the weights, exactly, and not learned.

Each attribute has channels of its own in the states of the text encoders; the embedding of an attribute's word is zero
in all others, and a word that says nothing of the scene is zero everywhere. A block's `attn2.to_k` and `attn2.to_v` are
zero for the channels of every attribute that does not enter there.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor, nn
from transformers import CLIPTokenizer

from riebench.backbones.sdxl import PLACES, SDXL
from riebench.backbones.worlds import ROLES
from riebench.core.errors import UserError, did_you_mean
from riebench.tinyworld.captions import ACCESSORY_WORDS, BACKGROUND_WORDS, FACE_WORDS, STYLE_WORDS
from riebench.tinyworld.scenes import ATTRIBUTES, VALUES

TEXT_WIDTH = 64  # of each of the two text encoders
CHANNELS = 2 * TEXT_WIDTH // len(ATTRIBUTES)  # of each attribute, in the order of `ATTRIBUTES`
FUNCTION_WORDS = frozenset(["of", "a", "the", "with", "wearing", "in", "on", "at", "by", "before"])
_PHRASES = {"content": FACE_WORDS, "accessory": ACCESSORY_WORDS, "background": BACKGROUND_WORDS, "style": STYLE_WORDS}


def attribute_of_words() -> dict[str, str]:
    """Returns word -> the attribute that it says something of, for every word of a caption but `FUNCTION_WORDS`."""
    tables = {name: _PHRASES[name].values() if name in _PHRASES else VALUES[name] for name in ATTRIBUTES}
    return {
        word: name
        for name, phrases in tables.items()
        for phrase in phrases
        for word in phrase.split()
        if word not in FUNCTION_WORDS
    }


def channels_of(attribute: str) -> slice:
    """Returns the channels of the text states `[..., 128]` that hold an attribute."""
    start = ATTRIBUTES.index(attribute) * CHANNELS
    return slice(start, start + CHANNELS)


def check_world(world: str, known: Collection[str] = tuple(ROLES)) -> None:
    """Raises `UserError` for a world that is not one of `known`, by default those whose roles are written down."""
    if world not in known:
        raise UserError(
            f"tinyworld has no world {world!r}{did_you_mean(world, known)}", remedy=f"use {', '.join(known)}"
        )


def attributes_in(world: str, block: str) -> tuple[str, ...]:
    """Returns the attributes whose words enter in a block, none for one that is not under test. Raises `UserError` for
    a world that does not exist."""
    check_world(world)
    if block not in SDXL.default_blocks:
        return ()
    roles = ROLES[world]
    return tuple(name for name in ATTRIBUTES if not roles or roles[name] == block)


def entering_columns(world: str, block: str) -> Tensor:
    """Returns which columns `[128]` of a block's keys and values may be other than zero, as 0 and 1."""
    allowed = torch.zeros(2 * TEXT_WIDTH)
    for attribute in attributes_in(world, block):
        allowed[channels_of(attribute)] = 1
    return allowed


def embedding_cells(tokenizer: CLIPTokenizer) -> Tensor:
    """Returns which cells `[tokens, 128]` of the two token embeddings may be other than zero, as 0 and 1."""
    cells = torch.zeros(len(tokenizer), 2 * TEXT_WIDTH)
    for word, attribute in attribute_of_words().items():
        (token,) = tokenizer(word, add_special_tokens=False).input_ids
        cells[token, channels_of(attribute)] = 1
    return cells


def masks(model: nn.Module, tokenizer: CLIPTokenizer, world: str) -> dict[str, Tensor]:
    """Returns parameter name -> where it may be other than zero, as 0 and 1, of everything that a world's structure
    holds down in a model with the parts `unet`, `text_encoder` and `text_encoder_2`."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    cells = embedding_cells(tokenizer).split(TEXT_WIDTH, dim=1)
    found = {}
    for encoder, mask in zip((model.text_encoder, model.text_encoder_2), cells, strict=True):
        found[names[id(encoder.get_input_embeddings().weight)]] = mask
    parts = dict(model.unet.named_modules())
    for block, place in PLACES.items():
        if place.path in parts:
            attention = parts[place.path].transformer_blocks[0].attn2
            for projection in (attention.to_k, attention.to_v):
                found[names[id(projection.weight)]] = entering_columns(world, block)
    return found


@torch.no_grad()
def hold_down(model: nn.Module, masks: dict[str, Tensor]) -> None:
    """Zeroes what a world's structure does not allow, in the parameters and in their gradients."""
    for name, mask in masks.items():
        parameter = model.get_parameter(name)
        allowed = mask.to(parameter.device)
        parameter.mul_(allowed)
        if parameter.grad is not None:
            parameter.grad.mul_(allowed)
