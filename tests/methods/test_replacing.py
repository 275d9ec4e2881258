"""prompt-injection and attention-patch: by hand, against modules that are called with other values, and replayed."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch
from sdxl_blocks import BLOCK_NAMES, BLOCKS

from baselines.attention_patch import AttentionPatch
from baselines.prompt_injection import PromptInjection
from riebench.backbones.family import Site
from riebench.backbones.table import Backbone
from riebench.core.errors import UserError
from riebench.edits.edit import load_edits
from riebench.generation.interventions import Addition, Intervention
from riebench.generation.replay import calling
from riebench.generation.sampler import Request, Sampler
from riebench.methods.method import Case
from riebench.methods.replacing import put_edited
from riebench.runs.engine import Engine
from riebench.runs.reference import Generation
from riebench.runs.setup import Setup
from riebench.tinyworld.captions import caption, parse

POSE = next(edit for edit in load_edits() if edit.category == "change_pose")
OTHER = {"shape": "heart", "pose": "crouching", "content": "sad", "colour": "green"}  # a word that each block reads
EDIT = dataclasses.replace(POSE, edited_prompt=caption(parse(POSE.original_prompt).with_(**OTHER)))
METHODS = {"text": PromptInjection(), "attention": AttentionPatch()}


@pytest.fixture(scope="module", params=["one step", "two guided steps"])
def bench(request, sampler):
    """(An engine of small pictures, a reference with the traces of both methods)."""
    steps, guidance = (1, 0.0) if request.param == "one step" else (2, 4.0)
    small = Backbone("small@2", "tinyworld/turbo", steps, guidance, "tinyworld", "tinyworld", height=32, width=32)
    engine = Engine(Generation(Sampler(small, sampler.pipeline, 4), Setup()))
    edit = dataclasses.replace(EDIT, original_region="everything", edited_region="everything")
    (reference,) = engine.references([(edit, 42)], list(METHODS.values()))
    return engine, reference


def image_of(sampler, prompt, change=None):
    return sampler.generate([Request(prompt, 42, change)])[0].image


def test_by_hand():
    site = Site("mid.0", "attention", 0)
    original, edited = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]]), torch.tensor([[[5.0, 2.0], [0.1, 4.0]]])
    case = Case(EDIT, 42, {site: original}, {site: edited}, {}, {}, lambda block: None)
    whole = put_edited(case, 1.0, "all")
    assert whole.branch == "cond" and whole.additions[site].replaces and whole.additions[site].cells.tolist() == [0, 1]
    assert torch.equal(whole.additions[site].values, edited)
    half = put_edited(case, 0.5, "first")
    torch.testing.assert_close(half.additions[site].values, torch.tensor([[[3.0, 2.0], [1.55, 4.0]]]))
    assert half.window == "first" and put_edited(case, 0.0, "all").additions == {}


def test_each_token_and_cell_has_its_value(bench):
    engine, reference = bench
    sampler = engine.sampler
    for kind, side in itertools.product(METHODS, ("original", "edited")):
        trace = getattr(reference.seen(kind), side)
        prompt = getattr(EDIT, f"{side}_prompt")
        for site, value in trace.items():
            assert site.kind == kind and value.shape[0] == sampler.backbone.steps
            if kind == "text":
                assert torch.equal(value, sampler.encode([prompt])["prompt_embeds"].expand_as(value))
            else:
                assert value.shape[1:] == (16, 96) and site.layer == 0


@pytest.mark.parametrize("block", BLOCK_NAMES)
def test_an_injected_block_is_called_with_the_edited_prompt(bench, block):
    """The same image as of a block whose own function is given the edited prompt's states, in the rows with a
    prompt."""
    engine, reference = bench
    sampler = engine.sampler
    change = engine.plan(reference, METHODS["text"]).restricted((block,))
    module = sampler.denoiser.get_submodule(BLOCKS[block])
    states, own = sampler.encode([EDIT.edited_prompt])["prompt_embeds"], module.forward

    def forward(hidden, encoder_hidden_states, **words):
        with_prompt = encoder_hidden_states.abs().sum(dim=(1, 2)) > 0
        given = torch.where(with_prompt[:, None, None], states, encoder_hidden_states)
        return own(hidden, encoder_hidden_states=given, **words)

    with calling(module, forward):
        wanted = image_of(sampler, EDIT.original_prompt)
    found = image_of(sampler, EDIT.original_prompt, change)
    assert torch.equal(found, wanted) and not torch.equal(found, reference.sample.image)


@pytest.mark.parametrize("block", BLOCK_NAMES)
def test_a_patched_attention_puts_out_what_it_did_for_the_edited_image(bench, block):
    engine, reference = bench
    sampler, steps = engine.sampler, engine.backbone.steps
    change = engine.plan(reference, METHODS["attention"]).restricted((block,))
    module = sampler.denoiser.get_submodule(BLOCKS[block]).transformer_blocks[0].attn2
    own, outputs = module.forward, []

    def keep(*args, **words):
        outputs.append(own(*args, **words))
        return outputs[-1]

    with calling(module, keep):
        image_of(sampler, EDIT.edited_prompt)
    assert len(outputs) == steps
    given = iter(outputs)

    def patched(hidden, encoder_hidden_states=None, **words):
        with_prompt = encoder_hidden_states.abs().sum(dim=(1, 2)) > 0
        running = own(hidden, encoder_hidden_states=encoder_hidden_states, **words)
        return torch.where(with_prompt[:, None, None], next(given), running)

    with calling(module, patched):
        wanted = image_of(sampler, EDIT.original_prompt)
    found = image_of(sampler, EDIT.original_prompt, change)
    assert torch.equal(found, wanted) and not torch.equal(found, reference.sample.image)


@pytest.mark.slow
@pytest.mark.parametrize("kind", METHODS)
def test_every_subset_replays_to_the_bit(bench, kind):
    engine, reference = bench
    change = engine.plan(reference, METHODS[kind])
    more = torch.ones(engine.backbone.steps, 16, 96)
    both = dataclasses.replace(change, additions={**change.additions, Site("mid.0"): more})
    subsets = [subset for size in range(1, 5) for subset in itertools.combinations(BLOCK_NAMES, size)]
    requests = [reference.request(change.restricted(subset)) for subset in subsets] + [reference.request(both)]
    whole = [sample.image for sample in engine.sampler.generate(requests)]
    replayed = list(engine.sampler.regenerate(requests, [reference.sample] * len(requests)))
    assert all(torch.equal(one, other) for one, other in zip(whole, replayed, strict=True))
    assert all(not torch.equal(one, other) for one, other in itertools.combinations(whole, 2))


def test_an_unchanged_prompt_and_no_strength_leave_the_image_as_it_is(bench):
    engine, reference = bench
    same = dataclasses.replace(reference.case.edit, edited_prompt=EDIT.original_prompt)
    (unchanged,) = engine.references([(same, 42)], list(METHODS.values()))
    for method in METHODS.values():
        (image,) = engine.generation.images([unchanged], [engine.plan(unchanged, method)])
        assert torch.equal(image, unchanged.sample.image)
        zero = engine.plan(reference, dataclasses.replace(method, strength=0.0))
        assert torch.equal(image_of(engine.sampler, EDIT.original_prompt, zero), reference.sample.image)


def test_a_saved_plan_is_the_same(bench, tmp_path):
    engine, reference = bench
    for kind, method in METHODS.items():
        change = engine.plan(reference, method).restricted(("mid.0",))
        change.save(tmp_path / kind)
        again = Intervention.load(tmp_path / kind)
        ((site, added),) = again.additions.items()
        assert site.kind == kind and added.replaces and torch.equal(added.values, change.additions[site].values)
        assert again.branch == "cond" and again.blocks == ("mid.0",)


@pytest.mark.parametrize(
    ("site", "words"),
    [(Site("mid.0"), {"branch": "cond"}), (Site("mid.0", "text"), {"branch": "both"}), (Site("mid.0", "stream"), {})],
    ids=str,
)
def test_values_are_put_in_the_place_of_others_within_blocks_and_with_the_prompt_alone(site, words):
    added = Addition(torch.arange(2), torch.zeros(1, 2, 3), replaces=True)
    with pytest.raises(UserError, match=f"in the place of those at {site.name}, .* -> do that within a block"):
        Intervention({site: added}, **words)
    with pytest.raises(UserError, match="names channels -> give values of all"):
        Addition(torch.arange(2), torch.zeros(1, 2, 1), torch.tensor([1]), 3, replaces=True)
