"""Replay: a first step from the earliest edit on equals a whole one, and costs what it should."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch
from sdxl_blocks import BLOCK_NAMES
from sdxl_configs import TINY, UNET, build_unet, random_pipeline
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from riebench.backbones.blocks import Blocks
from riebench.backbones.family import Site
from riebench.backbones.sdxl import SDXL as FAMILY
from riebench.backbones.table import Backbone
from riebench.core.batches import fixed_batches, halving
from riebench.core.errors import UserError
from riebench.generation.interventions import Intervention
from riebench.generation.replay import Edited, FirstAddition, Recorder, Replay
from riebench.generation.sampler import Request, Sampler

PROMPTS = [
    "flat poster of a standing red plain heart in the sky",
    "sketch of a leaning blue striped circle with a sad face at night",
]
SMALL = {"height": 32, "width": 32}  # pictures with a quarter of the cells
SUBSETS = [subset for size in range(5) for subset in itertools.combinations(BLOCK_NAMES, size)]


def recorded(sampler, seeds=(3, 4), kinds=("update",)):
    sites = [site for kind in kinds for site in sampler.blocks.sites(BLOCK_NAMES, kind)]
    return sampler.generate([Request(PROMPTS[i % 2], seed) for i, seed in enumerate(seeds)], sites, record=True)


def push(sample, kind="update", seed=0):
    """A random change of every site of a kind, in every step."""
    generator = torch.Generator().manual_seed(seed)
    return Intervention(
        {
            site: 0.3 * value.std() * torch.randn(value.shape, generator=generator)
            for site, value in sample.trace.items()
            if site.kind == kind
        }
    )


def agree_exactly(sampler, requests, originals):
    whole = [sample.image for sample in sampler.generate(requests)]
    replayed = list(sampler.regenerate(requests, originals))
    assert len(replayed) == len(whole)
    for request, expected, found in zip(requests, whole, replayed, strict=True):
        assert torch.equal(expected, found), request.intervention.blocks
    return whole


@pytest.mark.slow
def test_every_subset_of_the_blocks_equals_the_whole_pass_exactly(sampler):
    originals = recorded(sampler)
    change = push(originals[0])
    requests = [Request(PROMPTS[0], 3, change.restricted(subset)) for subset in SUBSETS]
    images = agree_exactly(sampler, requests, [originals[0]] * len(requests))
    assert torch.equal(images[0], originals[0].image)
    assert all(not torch.equal(a, b) for a, b in itertools.combinations(images, 2))


@pytest.mark.slow
def test_rows_of_many_cases_methods_and_strengths_do_not_disturb_one_another(sampler):
    originals = recorded(sampler, seeds=(3, 4, 5), kinds=("update", "neurons"))
    requests, starts = [], []
    for i, original in enumerate(originals):
        for kind, seed in (("update", 0), ("neurons", 1), ("update", 2)):
            change = push(original, kind, seed)
            for subset in (BLOCK_NAMES, ("mid.0",), ("down.2.1", "up.0.1")):
                requests.append(Request(PROMPTS[i % 2], 3 + i, change.restricted(subset)))
                starts.append(original)
    agree_exactly(sampler, requests, starts)


def test_an_edit_of_update_and_neurons_at_once(sampler):
    (original,) = recorded(sampler, seeds=(3,), kinds=("update", "neurons"))
    both = Intervention({**push(original).additions, **push(original, "neurons").additions})
    agree_exactly(sampler, [Request(PROMPTS[0], 3, both.restricted(("up.0.0",)))], [original])


def as_stream(change: Intervention) -> Intervention:
    """The same additions, to the blocks' streams in place of their updates."""
    additions = {Site(site.block, "stream"): added for site, added in change.additions.items()}
    return Intervention(additions, branch=change.branch, window=change.window)


@pytest.mark.slow
def test_adding_to_the_stream_is_adding_to_the_update_to_the_bit(sampler):
    """Whole and replayed, alone and in subsets, beside requests on the update."""
    (original,) = recorded(sampler, seeds=(3,))
    update = push(original)
    stream = as_stream(update)
    subsets = [(), *((block,) for block in BLOCK_NAMES), ("down.2.1", "up.0.0"), ("mid.0", "up.0.1"), BLOCK_NAMES]
    requests = [Request(PROMPTS[0], 3, one.restricted(subset)) for subset in subsets for one in (update, stream)]
    images = agree_exactly(sampler, requests, [original] * len(requests))
    assert all(torch.equal(a, b) for a, b in zip(images[::2], images[1::2], strict=True))
    assert all(not torch.equal(a, b) for a, b in itertools.combinations(images[::2], 2))
    assert all(torch.equal(next(sampler.regenerate([request], [original])), images[i]) for i, request in ends(requests))


def ends(requests):
    return [(i, requests[i]) for i in (1, 2, 3, len(requests) - 1)]


@pytest.mark.slow
def test_an_edit_of_update_stream_and_neurons_at_once(sampler):
    (original,) = recorded(sampler, seeds=(3,), kinds=("update", "neurons"))
    update, other = push(original), as_stream(push(original, seed=5))
    every = Intervention({**update.additions, **push(original, "neurons").additions, **other.additions})
    alone = {block: every.restricted((block,)) for block in BLOCK_NAMES}
    assert all({site.kind for site in one.sites} == {"update", "stream", "neurons"} for one in alone.values())
    requests = [Request(PROMPTS[0], 3, one) for one in (*alone.values(), every, update, other)]
    images = agree_exactly(sampler, requests, [original] * len(requests))
    assert all(not torch.equal(a, b) for a, b in itertools.combinations(images, 2))


@pytest.fixture(scope="module")
def small(sampler):
    return Sampler(dataclasses.replace(sampler.backbone, **SMALL), sampler.pipeline, sampler.batch_size)


@pytest.mark.slow
def test_update_and_stream_add_up_alike_in_any_order_company_and_capture(small):
    """Floating-point sums depend on their order, and images may not: not on the order in which sites were given, on
    what else is in the batch, or on what is traced."""
    (original,) = recorded(small, seeds=(3,))
    update, stream = push(original), as_stream(push(original, seed=5))
    one = Intervention({**update.additions, **stream.additions})
    other = Intervention({**stream.additions, **update.additions})
    requests = [Request(PROMPTS[0], 3, change) for change in (one, other)]
    images = agree_exactly(small, requests, [original] * 2)
    captures = [(), small.blocks.sites(BLOCK_NAMES, "stream"), small.blocks.sites(BLOCK_NAMES, "update")]
    images += [small.generate([request], sites)[0].image for request in requests for sites in captures]
    images += [next(small.regenerate([request], [original])) for request in requests]
    assert all(torch.equal(image, images[0]) for image in images)


@pytest.mark.slow
@pytest.mark.parametrize("branch", ["cond", "uncond", "both"])
def test_steps_and_guidance(sampler, branch):
    backbone = Backbone("guided@3", "tinyworld/turbo", 3, 4.0, "tinyworld", "tinyworld", **SMALL)
    guided = Sampler(backbone, sampler.pipeline, batch_size=4)
    originals = recorded(guided)
    change = push(originals[0])
    requests = [
        Request(PROMPTS[0], 3, Intervention(change.restricted(subset).additions, branch=branch))
        for subset in SUBSETS[1::4]
    ]
    agree_exactly(guided, requests, [originals[0]] * len(requests))


@pytest.fixture(scope="module")
def at_two_levels():
    """A pipeline with random weights whose U-Net has all of SDXL's attentions, those at the finer level too."""
    return random_pipeline(TINY, "turbo", "cpu", torch.float32)


@pytest.mark.slow
@pytest.mark.parametrize("guidance", [0.0, 4.0])
@pytest.mark.parametrize("names", [("down.2.0", "up.0.2"), ("down.1.0", "up.1.2"), ("up.1.1",)], ids="+".join)
def test_other_blocks_than_the_four_are_traced_edited_and_replayed(at_two_levels, names, guidance):
    size = {"height": 64, "width": 64}
    mine = Backbone("mine@2", "tinyworld/turbo", 2, guidance, "tinyworld", "tinyworld", blocks=names[::-1], **size)
    assert mine.blocks == names
    other = Sampler(mine, at_two_levels, batch_size=4)
    sites = [site for kind in ("update", "stream", "neurons") for site in other.blocks.sites(names, kind)]
    seen = {}
    hooks = [
        other.denoiser.get_submodule(FAMILY.places[name].path).register_forward_hook(
            lambda _m, args, out, name=name: seen.setdefault(name, []).append((args[0], out[0]))
        )
        for name in names
    ]
    (original,) = other.generate([Request(PROMPTS[0], 3)], sites, record=True)
    for hook in hooks:
        hook.remove()
    row = 0 if guidance == 0 else other.batch_size  # the first of those that see the prompt
    for name, (height, width) in other.grids(names).items():
        entered, left = (torch.stack([pair[i][row].flatten(1).T for pair in seen[name]]) for i in (0, 1))
        assert left.shape[1] == height * width
        assert torch.equal(original.trace[Site(name, "stream")], left)
        torch.testing.assert_close(original.trace[Site(name)], left - entered)
    update = push(original)
    requests = []
    for subset in (names, names[:1], names[-1:]):
        requests += [Request(PROMPTS[0], 3, one.restricted(subset)) for one in (update, as_stream(update))]
    requests.append(Request(PROMPTS[0], 3, push(original, "neurons")))
    images = agree_exactly(other, requests, [original] * len(requests))
    assert not any(torch.equal(image, original.image) for image in images)
    assert all(torch.equal(a, b) for a, b in zip(images[:-1:2], images[1:-1:2], strict=True))


def test_a_block_that_no_model_has_is_refused(sampler):
    with pytest.raises(UserError, match=r"unknown block 'up.0.8'; did you mean 'up.0.\d'"):
        dataclasses.replace(sampler.backbone, blocks=("down.2.0", "up.0.8"))
    change = Intervention({Site("middle.0"): torch.ones(1, 64, 96)})
    with pytest.raises(UserError, match="unknown block 'middle.0'.* -> use blocks out of down.1.0"):
        sampler.generate([Request(PROMPTS[0], 3, change)])
    with pytest.raises(UserError, match=r"unknown block 'mid.1'; did you mean 'mid.0'"):
        sampler.trace([Request(PROMPTS[0], 3)], [Site("mid.1")])


@pytest.mark.slow
def test_no_trace_of_a_replay_is_left_on_the_model(sampler):
    before = {name: (set(vars(m)), len(m._forward_hooks)) for name, m in sampler.denoiser.named_modules()}
    originals = recorded(sampler)
    list(sampler.regenerate([Request(PROMPTS[0], 3, push(originals[0]))], originals[:1]))
    broken = Intervention({Site("up.0.0"): torch.ones(1, 64, 3)})  # not as many channels as the block has
    with pytest.raises(RuntimeError):
        list(sampler.regenerate([Request(PROMPTS[0], 3, broken)], originals[:1]))
    assert before == {name: (set(vars(m)), len(m._forward_hooks)) for name, m in sampler.denoiser.named_modules()}
    assert torch.equal(sampler.generate([Request(PROMPTS[0], 3)])[0].image, originals[0].image)


def test_an_original_that_was_not_recorded_is_refused(sampler):
    plain = sampler.generate([Request(PROMPTS[0], 3)])
    with pytest.raises(ValueError, match="not recorded"):
        list(sampler.regenerate([Request(PROMPTS[0], 3)], plain))


class Operations(TorchDispatchMode):
    """Counts floating-point operations as `FlopCounterMode` does, without telling modules apart, which takes longer."""

    total = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        output = function(*args, **(kwargs or {}))
        count = flop_registry.get(function._overloadpacket)
        self.total += count(*args, **(kwargs or {}), out_val=output) if count else 0
        return output


@pytest.fixture(scope="module")
def sdxl():
    """SDXL's true architecture without memory for weights: (its replay, its recorded first step, FLOP of a forward)."""
    unet = build_unet(UNET)
    with torch.device("meta"), torch.no_grad():
        conditions = {"text_embeds": torch.zeros(1, 1280), "time_ids": torch.zeros(1, 6)}
        recorder = Recorder(Blocks(FAMILY, unet), BLOCK_NAMES)
        with Operations() as counter, recorder:
            unet(
                torch.zeros(1, 4, 64, 64),
                torch.tensor(999.0),
                encoder_hidden_states=torch.zeros(1, 77, 2048),
                added_cond_kwargs=conditions,
                return_dict=False,
            )
        replay = Replay(Blocks(FAMILY, unet), BLOCK_NAMES)
        replay.count(recorder.row(0))
    return replay, recorder.row(0), counter.total


def cost(sdxl, subsets):
    """(In forwards, by counting every multiplication; in forwards, as `Replay` reports them)."""
    replay, first, whole = sdxl
    every = torch.arange(16 * 16, device="meta")
    additions = {block: FirstAddition(every, torch.zeros(len(every), 1280, device="meta")) for block in BLOCK_NAMES}
    rows = [Edited(first, {Site(block): additions[block] for block in subset}) for subset in subsets]
    before = replay.forwards
    with Operations() as counter:
        replay.predict(rows, 1)
    return counter.total / whole, replay.forwards - before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("subsets", "most"),
    [
        ([("up.0.1",)], 0.34),
        ([("up.0.0",)], 0.45),
        ([("mid.0",)], 0.58),
        ([("down.2.1",)], 0.69),
        ([BLOCK_NAMES], 0.69),
        (SUBSETS[1:], 6.5),
        ([()], 0.0),
    ],
    ids=["up.0.1", "up.0.0", "mid.0", "down.2.1", "all blocks", "15 subsets", "none"],
)
def test_what_it_costs_on_sdxl(sdxl, subsets, most):
    counted, reported = cost(sdxl, subsets)
    assert counted <= most
    assert reported == pytest.approx(counted, rel=0.01, abs=1e-9)


def test_a_forward_of_sdxl_at_512_px_is_1_59_tflop(sdxl):
    assert sdxl[2] == pytest.approx(1.59e12, rel=0.01)


def test_the_sampler_counts_forwards(sampler):
    before = sampler.forwards
    originals = recorded(sampler)
    assert sampler.forwards - before == pytest.approx(2)
    change = push(originals[0])
    list(
        sampler.regenerate(
            [Request(PROMPTS[0], 3, change.restricted((block,))) for block in BLOCK_NAMES], originals[:1] * 4
        )
    )
    assert 2 < sampler.forwards - before < 2 + 4 * 0.8


# ---------------------------------------------------------------- batches


def test_batches_are_of_one_size():
    assert list(fixed_batches([1, 2, 3, 4, 5], 2)) == [([1, 2], 2), ([3, 4], 2), ([5, 5], 1)]
    assert list(fixed_batches([], 2)) == []


def test_memory_that_runs_out_halves_the_batch(capsys):
    def work(size, room=3):
        if size > room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return f"done by {size}"

    assert halving(work, 16, "scoring") == ("done by 2", 2)
    assert capsys.readouterr().err.count("out of memory") == 3
    with pytest.raises(UserError, match="not even one row fits"):
        halving(lambda size: work(size, room=0), 4, "scoring")
    with pytest.raises(RuntimeError, match="shape"):
        halving(lambda _: (_ for _ in ()).throw(RuntimeError("shape mismatch")), 4, "scoring")


def test_a_sampler_goes_on_with_smaller_batches(sampler, monkeypatch, capsys):
    small = Sampler(sampler.backbone, sampler.pipeline, batch_size=8)
    whole = small._batch

    def batch(rows, *args, **kwargs):
        if len(rows) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(rows, *args, **kwargs)

    monkeypatch.setattr(small, "_batch", batch)
    requests = [Request(PROMPTS[i % 2], i) for i in range(5)]
    images = [sample.image for sample in small.generate(requests)]
    assert small.batch_size == 2 and "batches of 2" in capsys.readouterr().err
    expected = Sampler(sampler.backbone, sampler.pipeline, batch_size=2).generate(requests)
    assert all(torch.equal(a, b.image) for a, b in zip(images, expected, strict=True))
