"""Where words enter in a planted world: zeros in the weights, and what a changed word does, to the bit."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionXLPipeline
from transformers import CLIPTokenizer

from riebench.backbones.sdxl import PLACES, SDXL
from riebench.backbones.worlds import ROLES
from riebench.core.files import data_folder
from riebench.tinyworld.captions import WORDS, caption
from riebench.tinyworld.scenes import ATTRIBUTES, VALUES, Scene
from riebench.tinyworld_build import train, train_base
from riebench.tinyworld_build.models import build_base_scheduler
from riebench.tinyworld_build.structure import FUNCTION_WORDS, attribute_of_words

SCENE = Scene(content="happy", accessory="hat")
#: Attribute -> a value whose phrase has as many words as that of `SCENE`.
OTHER = {name: values[1] for name, values in VALUES.items()} | {
    "content": "sad",
    "accessory": "crown",
    "background": "desert",
    "style": "pixel",
}
ATTENTIONS = tuple(block for block in PLACES if not block.startswith(("down.1", "up.1")))


@pytest.fixture(scope="module")
def folder() -> str:
    return str(data_folder() / "tinyworld" / "base")


@pytest.fixture(scope="module", params=list(ROLES))
def world(request, folder, tmp_path_factory) -> tuple[str, StableDiffusionXLPipeline]:
    """A world's name and its untrained pipeline, as `from_pretrained` reads it back."""
    torch.manual_seed(1)
    tokenizer = CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer")
    model = train_base.Denoiser(tokenizer, request.param)
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.01)  # two steps of training, away from the first weights
    for _ in range(2):
        states, pooled = train_base.encode_prompts(
            [caption(SCENE)], tokenizer, model.text_encoder, model.text_encoder_2
        )
        noise = torch.randn(1, 4, 32, 32)
        found = train_base.denoise(model.unet, noise, torch.tensor([999]), torch.ones(1), states, pooled)
        (found**2).sum().backward()
        model.hold_down()
        optimiser.step()
    vae = AutoencoderKL.from_pretrained(folder, subfolder="vae", low_cpu_mem_usage=False)
    place = tmp_path_factory.mktemp("world") / request.param
    train._pipeline(model, vae, tokenizer, build_base_scheduler()).save_pretrained(place)
    return request.param, StableDiffusionXLPipeline.from_pretrained(place, low_cpu_mem_usage=False)


def states_of(pipeline, prompt):
    states, none, pooled, _ = pipeline.encode_prompt(prompt, do_classifier_free_guidance=True)
    assert not pooled.any() and not none.any() and states.shape == (1, 24, 128)
    return states


def blocks_of(pipeline, prompt) -> dict[str, torch.Tensor]:
    """What every attention puts out for a prompt, in the order in which they run."""
    found = {}
    hooks = [
        pipeline.unet.get_submodule(PLACES[block].path).register_forward_hook(
            lambda module, args, output, block=block: found.update({block: output[0].clone()})
        )
        for block in ATTENTIONS
    ]
    noise = torch.randn(1, 4, 32, 32, generator=torch.Generator().manual_seed(3))
    added = {"text_embeds": torch.zeros(1, 16), "time_ids": torch.tensor([[64.0, 64, 0, 0, 64, 64]])}
    with torch.no_grad():
        pipeline.unet(noise, 999, encoder_hidden_states=states_of(pipeline, prompt), added_cond_kwargs=added)
    for hook in hooks:
        hook.remove()
    return found


def test_every_word_is_of_one_attribute_or_says_nothing():
    words = attribute_of_words()
    assert set(words) | FUNCTION_WORDS == set(WORDS) and not set(words) & FUNCTION_WORDS
    for name, values in VALUES.items():
        for value in values:  # what tells a value from the others of its attribute is a word of that attribute
            other = next(other for other in values if other != value)
            one, two = (Counter(caption(SCENE.with_(**{name: each})).split()) for each in (value, other))
            told = {word for word in (one - two) + (two - one) if word not in FUNCTION_WORDS}
            assert told and {words[word] for word in told} == {name}


def test_no_attribute_keeps_its_block_in_the_permuted_world():
    planted, permuted = ROLES["planted"], ROLES["permuted"]
    assert set(planted) == set(permuted) == set(ATTRIBUTES)
    assert set(planted.values()) == set(permuted.values()) == set(SDXL.default_blocks)
    assert all(planted[name] != permuted[name] for name in ATTRIBUTES)


def test_forbidden_columns_are_zero(world):
    name, pipeline = world
    parts = dict(pipeline.unet.named_modules())
    attentions = [path for path in parts if path.endswith(".attn2")]
    assert {path.partition(".transformer")[0] for path in attentions} == {PLACES[block].path for block in ATTENTIONS}
    for block in ATTENTIONS:
        attention = parts[PLACES[block].path].transformer_blocks[0].attn2
        for weight in (attention.to_k.weight, attention.to_v.weight):
            assert weight.shape == (96, 128)
            for index, attribute in enumerate(ATTRIBUTES):
                enters = block in SDXL.default_blocks and ROLES[name].get(attribute, block) == block
                columns = weight[:, 16 * index : 16 * index + 16]
                assert bool(columns.any(dim=0).all()) if enters else not columns.any()


def test_a_word_is_in_its_attribute_s_channels_alone(world):
    _, pipeline = world
    prompt = caption(SCENE)
    states, words = states_of(pipeline, prompt)[0], prompt.split()
    belongs = attribute_of_words()
    for position, state in enumerate(states):
        word = words[position - 1] if 0 < position <= len(words) else ""
        index = ATTRIBUTES.index(belongs[word]) if word in belongs else None
        held = {channel // 16 for channel in state.nonzero().flatten().tolist()}
        assert held == (set() if index is None else {index}), word


def test_a_changed_word_changes_nothing_before_its_block_to_the_bit(world):
    name, pipeline = world
    before = blocks_of(pipeline, caption(SCENE))
    assert list(before) == list(ATTENTIONS)
    for attribute in ATTRIBUTES:
        after = blocks_of(pipeline, caption(SCENE.with_(**{attribute: OTHER[attribute]})))
        first = ROLES[name].get(attribute, "down.2.1")
        untouched = ATTENTIONS[: ATTENTIONS.index(first)]
        assert all(torch.equal(before[block], after[block]) for block in untouched), attribute
        assert not any(torch.equal(before[block], after[block]) for block in ATTENTIONS[len(untouched) :]), attribute
