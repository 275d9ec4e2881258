"""Where words enter in a planted world: zeros in the weights, and what a changed word does, to the bit; of worlds that
are not trained yet, and of every shipped one."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionXLPipeline
from safetensors.torch import load_file
from transformers import CLIPTokenizer

from riebench.backbones.loading import load_pipeline
from riebench.backbones.sdxl import PLACES, SDXL
from riebench.backbones.table import BACKBONES
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
SHIPPED = [name for name in BACKBONES.names() if BACKBONES.get(name).world]


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


@pytest.fixture(scope="module", params=SHIPPED)
def shipped(request) -> tuple[str, StableDiffusionXLPipeline]:
    """A backbone of the table whose world is told, and its pipeline."""
    return request.param, load_pipeline(BACKBONES.get(request.param), torch.device("cpu"), torch.float32)


def updates_of(pipeline, backbone, prompt) -> dict[str, torch.Tensor]:
    """What every attention adds to the image stream in the first step of a generation, in the rows that see the prompt,
    in the order in which they run. In a later step they start from what the first has made."""
    found = {}

    def stop(pipeline, _step, _time, values):
        pipeline._interrupt = True
        return values

    hooks = [
        pipeline.unet.get_submodule(PLACES[block].path).register_forward_hook(
            lambda module, args, output, block=block: found.update({block: (output[0] - args[0])[-1]})
        )
        for block in ATTENTIONS
    ]
    pipeline(
        prompt,
        num_inference_steps=backbone.steps,
        guidance_scale=backbone.guidance,
        height=64,
        width=64,
        generator=torch.Generator().manual_seed(5),
        callback_on_step_end=stop,
        output_type="latent",
    )
    for hook in hooks:
        hook.remove()
    return found


def test_the_worlds_that_are_shipped_are_of_the_table():
    assert {"tinyworld-turbo@1", "tinyworld-turbo@4", "tinyworld-base@25"} <= set(SHIPPED)
    assert {BACKBONES.get(name).world for name in SHIPPED} <= set(ROLES)
    folders = {BACKBONES.get(name).folder: BACKBONES.get(name).world for name in SHIPPED}
    assert all(BACKBONES.get(name).world == folders[BACKBONES.get(name).folder] for name in SHIPPED)


@pytest.mark.parametrize("folder", sorted({BACKBONES.get(name).folder for name in SHIPPED}))
def test_forbidden_columns_are_zero_in_the_shipped_files(folder):
    (world,) = {BACKBONES.get(name).world for name in SHIPPED if BACKBONES.get(name).folder == folder}
    (path,) = (data_folder() / folder / "unet").glob("*.safetensors")
    weights = load_file(path)
    entries = {
        f"{PLACES[block].path}.transformer_blocks.0.attn2.to_{letter}.weight": block
        for block in ATTENTIONS
        for letter in "kv"
    }
    assert {name for name in weights if ".attn2.to_k" in name or ".attn2.to_v" in name} == set(entries)
    assert not any("add_k_proj" in name or "encoder_hid" in name for name in weights), "there is another way in"
    for name, block in entries.items():
        for index, attribute in enumerate(ATTRIBUTES):
            enters = block in SDXL.default_blocks and ROLES[world].get(attribute, block) == block
            columns = weights[name][:, 16 * index : 16 * index + 16]
            assert columns.shape == (96, 16)
            assert bool(columns.any(dim=0).all()) if enters else not columns.any(), (name, attribute)


@pytest.mark.parametrize("folder", sorted({BACKBONES.get(name).folder for name in SHIPPED}))
def test_a_word_is_in_its_attribute_s_channels_alone_in_the_shipped_files(folder):
    tokenizer = CLIPTokenizer.from_pretrained(data_folder() / folder, subfolder="tokenizer")
    found = []
    for part in ("text_encoder", "text_encoder_2"):
        (path,) = (data_folder() / folder / part).glob("*.safetensors")
        (table,) = (value for name, value in load_file(path).items() if name.endswith("token_embedding.weight"))
        found.append(table)
    cells, belongs = torch.cat(found, dim=1), attribute_of_words()
    tokens = {tokenizer(word, add_special_tokens=False).input_ids[0]: name for word, name in belongs.items()}
    assert cells.shape == (len(tokenizer), 128) and len(tokens) == len(belongs)
    for token, row in enumerate(cells):
        index = ATTRIBUTES.index(tokens[token]) if token in tokens else None
        held = {channel // 16 for channel in row.nonzero().flatten().tolist()}
        assert held == (set() if index is None else {index}), tokenizer.decode([token])


def test_a_word_is_in_its_attribute_s_channels_alone_as_a_shipped_pipeline_encodes_it(shipped):
    _, pipeline = shipped
    belongs = attribute_of_words()
    for scene in (SCENE, *(SCENE.with_(**{name: other}) for name, other in OTHER.items())):
        words = caption(scene).split()
        for position, state in enumerate(states_of(pipeline, caption(scene))[0]):
            word = words[position - 1] if 0 < position <= len(words) else ""
            index = ATTRIBUTES.index(belongs[word]) if word in belongs else None
            held = {channel // 16 for channel in state.nonzero().flatten().tolist()}
            assert held == (set() if index is None else {index}), word


def test_a_changed_word_changes_nothing_before_its_block_to_the_bit_in_a_shipped_world(shipped):
    """In what each block adds, in the first step, and everything from its block on."""
    name, pipeline = shipped
    backbone = BACKBONES.get(name)
    before = updates_of(pipeline, backbone, caption(SCENE))
    assert list(before) == list(ATTENTIONS)
    for attribute in ATTRIBUTES:
        after = updates_of(pipeline, backbone, caption(SCENE.with_(**{attribute: OTHER[attribute]})))
        first = ATTENTIONS.index(ROLES[backbone.world].get(attribute, "down.2.1"))
        assert list(after) == list(ATTENTIONS)
        for index, block in enumerate(ATTENTIONS):
            assert torch.equal(before[block], after[block]) == (index < first), (attribute, block)
