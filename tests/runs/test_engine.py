"""The engine's three parts: what generates loads no judge, a reference can be held, twins share every weight."""

from __future__ import annotations

import dataclasses
from concurrent.futures import ThreadPoolExecutor
from typing import ClassVar

import numpy as np
import pandas as pd
import pytest
import torch
from sdxl_blocks import BLOCK_NAMES, BLOCKS

from baselines import METHODS
from baselines.neurons import Neurons
from baselines.sae import SAE
from baselines.select_on import Mismatched, OtherSeed
from riebench.api import generate
from riebench.backbones.family import Site
from riebench.core.errors import UserError
from riebench.core.pictures import eight_bits, to_array
from riebench.edits.edit import Edit, load_edits
from riebench.generation.interventions import Intervention
from riebench.methods.text_index import load_text_index, text_index_path
from riebench.metrics.models import ScoringModels
from riebench.runs import engine as engines
from riebench.runs import reference as references
from riebench.runs.engine import Engine, open_engine
from riebench.runs.pictures import Pictures
from riebench.runs.plan import Variant, plan, plan_variants
from riebench.runs.reference import Generation
from riebench.runs.scoring import Scorer
from riebench.runs.setup import Setup
from riebench.tinyworld.clip import Clip
from sae_models import index

PROMPT = "flat poster of a standing red plain heart in the sky"
EDITS = [edit for edit in load_edits() if edit.id.endswith("-04")]


TOLERANCE = 2e-4  # of a picture, between batches of one size and another


class Missing:
    """Stands for judges and grounders whose weights are not there."""

    def __init__(self, *_args, **_settings):
        raise UserError("the weights are missing", remedy="fetch them")

    @classmethod
    def get(cls, _name):
        return cls


@pytest.fixture
def judgeless(monkeypatch):
    """Nothing that looks at pictures can be loaded."""
    monkeypatch.setattr(engines, "GROUNDERS", Missing)
    monkeypatch.setattr(engines, "Scorer", Missing)
    monkeypatch.setattr(ScoringModels, "__getitem__", Missing.__init__)


def fresh(engine) -> Engine:
    """Another engine of the same sampler, which has loaded nothing."""
    return Engine(Generation(engine.sampler, Setup()))


def by_hand(sampler, prompt: str, seed: int, block: str, vector_c: torch.Tensor) -> torch.Tensor:
    """The image with a vector added to the block's output at every cell, by a plain hook."""

    def on(_module, _args, output):
        return (output[0] + vector_c[None, :, None, None], *output[1:])

    handle = sampler.denoiser.get_submodule(BLOCKS[block]).register_forward_hook(on)
    with torch.no_grad():
        image = sampler.pipeline(
            prompt=prompt,
            num_inference_steps=sampler.backbone.steps,
            guidance_scale=0.0,
            height=64,
            width=64,
            generator=torch.Generator("cpu").manual_seed(seed),
            output_type="pt",
        ).images[0]
    handle.remove()
    return image


def test_an_image_needs_neither_grounder_nor_judges(engine, judgeless):
    alone = fresh(engine)
    generation = alone.generation
    plain = generation.image(PROMPT, 5)
    pushed = generation.image(PROMPT, 5, generation.intervention({"up.0.1": {12: 6.0, 40: -3.0}}))
    assert alone._regions is None and alone._scorer is None
    rows_fc = generation.dictionary("up.0.1").W_dec.detach()
    for found, vector in ((plain, torch.zeros(96)), (pushed, 6 * rows_fc[12] - 3 * rows_fc[40])):
        wanted = by_hand(engine.sampler, PROMPT, 5, "up.0.1", vector)
        torch.testing.assert_close(found, wanted, atol=TOLERANCE, rtol=0)
    assert (pushed - plain).abs().max() > 100 * TOLERANCE, "a push is seen, or agreement would say nothing"
    for part in ("regions", "scorer"):
        with pytest.raises(UserError, match="weights are missing"):
            getattr(alone, part)
    with pytest.raises(UserError, match="weights are missing"):
        alone.load()


@pytest.mark.slow
def test_an_engine_that_is_opened_loads_judges_when_they_are_asked_for(judgeless):
    opened = open_engine("tinyworld-turbo@1", "cpu", batch_size=2)
    assert opened._regions is None and opened._scorer is None
    image = opened.generation.image(PROMPT, 5)
    assert opened._regions is None and opened._scorer is None
    shown = to_array(eight_bits(image))
    np.testing.assert_array_equal(np.array(generate(PROMPT, seed=5, engine=opened)), shown)
    np.testing.assert_array_equal(np.array(generate(PROMPT, seed=5, device="cpu")), shown)
    change = opened.generation.intervention({"mid.0": {3: 8.0}})
    changed = to_array(eight_bits(opened.generation.image(PROMPT, 5, change)))
    np.testing.assert_array_equal(np.array(generate(PROMPT, seed=5, intervention=change, engine=opened)), changed)
    assert (changed != shown).any()
    assert (np.array(generate(PROMPT, seed=6, engine=opened)) != shown).any()


def test_load_says_at_once_what_is_missing_and_loads_once(engine):
    alone = fresh(engine)
    assert alone.load() is alone and alone._regions is alone.regions and alone._scorer is alone.scorer


def test_features_go_where_they_are_asked_to(engine):
    generation = engine.generation
    cells = torch.zeros(64, dtype=torch.bool)
    cells[[3, 17]] = True
    change = generation.intervention({"up.0.1": {12: 2.0}}, {"up.0.1": cells}, branch="cond")
    (site,) = change.additions
    assert site == Site("up.0.1") and change.branch == "cond" and change.additions[site].cells.tolist() == [3, 17]
    wanted = 2 * generation.dictionary("up.0.1").W_dec[12].expand(1, 2, -1)
    torch.testing.assert_close(change.additions[site].values, wanted)
    named = generation.intervention({Site("up.0.1"): {12: 2.0}}, {"up.0.1": cells}, branch="cond")
    assert torch.equal(named.additions[site].values, change.additions[site].values)
    everywhere = generation.intervention({"up.0.1": {12: 2.0}}).additions[site]
    assert everywhere.cells.tolist() == list(range(64))
    with pytest.raises(UserError, match="has no feature 768"):
        generation.intervention({"up.0.1": {768: 1.0}})


# ---------------------------------------------------------------- references that are held


@pytest.mark.slow
def test_a_reference_is_used_again_for_other_interventions(engine):
    alone = fresh(engine)
    edit = EDITS[5]
    (held,) = alone.references([(edit, 9)])
    first, second = (
        alone.generation.intervention({"up.0.1": {12: 6.0}}),
        alone.generation.intervention({"mid.0": {3: 8.0}, "up.0.0": {1: -4.0}}),
    )
    (one,) = alone.generation.images([held], [first])
    alone.references([(EDITS[0], 9)])  # something else in between
    (two,) = alone.generation.images([held], [second])
    both = alone.generation.images([held, held], [first, second])
    assert torch.equal(both[0], one) and torch.equal(both[1], two) and not torch.equal(one, two)
    for image, change in ((one, first), (two, second)):
        assert torch.equal(image, alone.generation.image(edit.original_prompt, 9, change))
        (again,) = alone.references([(edit, 9)])
        assert torch.equal(image, alone.generation.images([again], [change])[0])
    assert torch.equal(alone.generation.images([held], [Intervention()])[0], held.sample.image)
    assert alone._scorer is None


@pytest.mark.slow
def test_a_reference_gives_the_same_rows_every_time(engine):
    (held,) = engine.references([(EDITS[5], 9)])
    variants = [Variant(SAE(k=8), ("up.0.1",)), Variant(SAE(k=8, strength=2.0), ("mid.0", "up.0.1"))]
    apart = [next(engine.results([(held, [variant])])) for variant in reversed(variants)][::-1]
    together = list(engine.results([(held, variants)]))
    anew = list(engine.results([(engine.references([(EDITS[5], 9)])[0], variants)]))
    for a, b, c in zip(apart, together, anew, strict=True):
        assert a.row == b.row == c.row and torch.equal(a.image, b.image) and torch.equal(a.image, c.image)
        assert a.row["status"] == "ok"


@pytest.mark.slow
def test_what_a_method_does_to_a_reference_is_its_plan(engine):
    methods = [SAE(k=6), Neurons(k=9)]
    (held,) = engine.references([(EDITS[5], 9)], methods)
    kinds = {site.kind for site in held.case.original}
    assert kinds == {"update", "neurons"}
    for method, kind in zip(methods, ("update", "neurons"), strict=True):
        found = engine.plan(held, method)
        assert {site.kind for site in found.sites} == {kind} and found.norm > 0
        seen = {side: {s: v for s, v in getattr(held.case, side).items() if s.kind == kind} for side in engines.SIDES}
        wanted = method.plan(dataclasses.replace(held.case, **seen))
        assert found.chosen == wanted.chosen and list(found.additions) == list(wanted.additions)
        for site, added in found.additions.items():
            assert torch.equal(added.dense(64), wanted.additions[site].dense(64))
        (image,) = engine.generation.images([held], [found])
        (result,) = engine.results([(held, [Variant(method, engine.backbone.blocks)])])
        assert torch.equal(eight_bits(image), result.image) and result.row["injected_norm"] == found.norm


def test_a_plan_that_there_is_none_of_says_why(engine):
    nowhere = Edit("n", "change_pose", PROMPT, PROMPT.replace("red", "blue"), "crown", "crown")
    failed, whole = engine.references([(nowhere, 9), (EDITS[5], 9)])
    with pytest.raises(UserError, match="no region found"):
        engine.plan(failed, SAE())
    with pytest.raises(UserError, match="no trace of neurons"):
        engine.plan(whole, Neurons())
    with pytest.raises(UserError, match="no other case"):
        engine.plan(whole, OtherSeed())
    for method in (Neurons(), OtherSeed()):
        (result,) = engine.results([(whole, [Variant(method, engine.backbone.blocks)])])
        assert result.row["status"] == "failed" and result.image is None
    (donor,) = engine.references([(EDITS[5], 10)])
    assert engine.plan(dataclasses.replace(whole, donors={"seed": donor}), OtherSeed()).norm > 0


# ---------------------------------------------------------------- twins


def networks(*things) -> list[torch.nn.Module]:
    """All modules that can be reached from things, by attributes, containers and what functions close over."""
    waiting, seen, found = list(things), set(), []
    while waiting:
        item = waiting.pop()
        if id(item) in seen or isinstance(item, torch.Tensor | type):
            continue
        seen.add(id(item))
        if isinstance(item, torch.nn.Module):
            found.append(item)
        elif isinstance(item, dict):
            waiting += item.values()
        elif isinstance(item, list | tuple | set):
            waiting += item
        else:
            waiting += [cell.cell_contents for cell in getattr(item, "__closure__", None) or ()]
            waiting += vars(item).values() if hasattr(item, "__dict__") else ()
    return found


def places(*things) -> set[int]:
    """Where the parameters and buffers of all their networks lie."""
    weights = (w for network in networks(*things) for w in (*network.parameters(), *network.buffers()))
    return {weight.data_ptr() for weight in weights if weight.numel()}


@pytest.mark.slow
def test_a_twin_shares_every_weight_of_all_three_parts(engine):
    one = fresh(engine).load()
    one.generation.dictionary("up.0.1")
    twin = one.twin()
    (reference,) = one.references([(EDITS[5], 9)])
    for each in (one, twin):  # networks that are loaded late would be loaded twice here
        list(each.results([(reference, [Variant(SAE(), ("up.0.1",))])]))
    for part in ("regions", "scorer"):
        mine, other = getattr(one, part), getattr(twin, part)
        assert mine is not other and places(mine) == places(other) and len(places(mine)) > 5, part
    kinds = {type(network).__name__ for network in networks(twin.scorer)}
    assert len(kinds) >= 3, kinds  # CLIP, LPIPS and the oracle
    grounder, other = one.regions.grounder, twin.regions.grounder
    assert grounder is not other
    for (name, weight), (_, theirs) in zip(grounder.named_parameters(), other.named_parameters(), strict=True):
        assert weight.data_ptr() == theirs.data_ptr(), name
    denoisers = zip(one.sampler.denoiser.parameters(), twin.sampler.denoiser.parameters(), strict=True)
    assert all(mine.data_ptr() == theirs.data_ptr() for mine, theirs in denoisers)
    assert one.sampler.pipeline.vae is twin.sampler.pipeline.vae
    assert twin.generation.dictionary("up.0.1") is one.generation.dictionary("up.0.1")
    assert twin.setup is one.setup and twin.regions.look is one.regions.look


@pytest.mark.slow
def test_two_twins_in_two_threads_score_as_one_engine_to_the_bit(engine):
    one = fresh(engine).load()
    variants = [Variant(SAE(), ("up.0.1",)), Variant(SAE(mode="adaptive"), engine.backbone.blocks)]
    halves = [[(edit, 9) for edit in EDITS[:2]], [(edit, 9) for edit in EDITS[4:6]]]

    def work(each: Engine, cases):
        return [r for found in each.references(cases) for r in each.results([(found, variants)])]

    wanted = [work(one, cases) for cases in halves]
    twins = [one.twin(), one.twin()]
    with ThreadPoolExecutor(2) as pool:
        for order in (halves, halves[::-1]):
            found = list(pool.map(work, twins, order))
            for mine, theirs in zip(found, wanted if order is halves else wanted[::-1], strict=True):
                rows = (pd.DataFrame([result.row for result in results]) for results in (mine, theirs))
                pd.testing.assert_frame_equal(*rows, check_exact=True)
                pairs = [(a.image, b.image) for a, b in zip(mine, theirs, strict=True)]
                assert all(torch.equal(a, b) for a, b in pairs if b is not None)
                assert sum(b is not None for _, b in pairs) >= 3


@pytest.fixture(scope="module")
def groups(engine):
    """Two groups of tasks; each case's donor is the next one, of the second group the first."""
    methods = [SAE(k=4), Neurons(k=6), Mismatched(k=4), Neurons(k=3, name="few")]
    variants = plan_variants(methods, ("sae",), ("up.0.0", "up.0.1"))
    tasks = plan(engine.backbone, [(edit, 9) for edit in EDITS[2:8:2]], variants, Setup(), EDITS[2:8:2])
    cases = [(task.edit, task.seed) for task in tasks]
    turned = zip(tasks, [*cases[1:], cases[0]], strict=True)
    tasks = [dataclasses.replace(task, donors={"edit": donor}) for task, donor in turned]
    return [tasks[:2], tasks[2:]]


@pytest.fixture(scope="module")
def usual(engine, groups):
    return list(fresh(engine).work(groups, "scored"))


@pytest.mark.slow
@pytest.mark.parametrize("held", [True, False])
@pytest.mark.parametrize("ahead", [0, 1])
def test_rows_depend_neither_on_what_is_held_nor_on_what_is_planned_ahead(
    engine, groups, usual, held, ahead, monkeypatch
):
    if not held:
        monkeypatch.setattr(references, "HELD_BYTES", 0)
    reads, read = [], engine.sampler.read
    monkeypatch.setattr(engine.sampler, "read", lambda *asked: reads.append(len(asked[0])) or read(*asked))
    other = fresh(engine)
    other.ahead = ahead
    found = list(other.work(groups, "scored"))
    for made, wanted in zip(found, usual, strict=True):
        assert repr(made.rows) == repr(wanted.rows), "repr: NaN is NaN"
        assert made.pictures.keys() == wanted.pictures.keys()
        assert all(np.array_equal(picture, wanted.pictures[name]) for name, picture in made.pictures.items())
    assert all(row["status"] == "ok" for batch in usual for row in batch.rows)
    # the first step, then what was chosen, of both pictures of the cases of a group and of their donors that are new
    assert reads == ([] if held else [6, 4, 2, 2])


def test_a_case_that_others_chose_features_on_is_not_made_again(engine, groups, monkeypatch):
    other, asked = fresh(engine), []
    make = other.generation.references
    monkeypatch.setattr(
        other.generation, "references", lambda cases, *more: asked.append(list(cases)) or make(cases, *more)
    )
    list(other.work(groups))
    first, second = ([(task.edit, task.seed) for task in group] for group in groups)
    assert asked == [[*first, *second], second]
    monkeypatch.setattr(engines, "DONORS_KEPT", 1)
    asked.clear()
    list(other.work([groups[0], groups[1], groups[0]]))
    (kept,) = other._donors.values()
    assert len(kept) == 1 and asked[0] == first, "all donors were kept so far"
    assert asked[1] == [*second, first[0]], "only the one used last is kept"


@dataclasses.dataclass(frozen=True)
class NeuronsElsewhere(Neurons):
    """Chooses neurons on another edit."""

    name: str = "neurons-elsewhere"
    select_on: ClassVar[str] = "edit"


@pytest.mark.slow
def test_a_case_that_was_kept_without_neurons_is_made_again_for_who_wants_them(engine, groups, monkeypatch):
    other, (task,) = fresh(engine), groups[1]
    blocks = [w for w in task.wanted if w.variant.method.name == "mismatched"]
    (neurons,) = plan_variants([NeuronsElsewhere(k=5)], (), ("up.0.0", "up.0.1"))
    wanted = [dataclasses.replace(blocks[0], variant=neurons)]
    for asked in (blocks, wanted):
        *_, batch = other.work([[dataclasses.replace(task, wanted=tuple(asked))]])
        assert [row["status"] for row in batch.rows] == ["ok"], batch.rows[0]["reason"]
    monkeypatch.setattr(references, "HELD_BYTES", 0)
    *_, again = fresh(engine).work([[dataclasses.replace(task, wanted=tuple(wanted))]])
    assert repr(again.rows) == repr(batch.rows), "neurons that are read again are chosen on the other case too"


def test_where_few_pictures_are_made_at_once_each_is_judged_alone(engine, monkeypatch):
    read = []
    monkeypatch.setattr(
        Clip, "encode_images", lambda self, images: read.append(len(images)) or torch.full((len(images), 64), 0.125)
    )
    edit, image = load_edits()[0], torch.rand(3, 64, 64)
    pictures = Pictures(image, 1 - image, torch.ones(2, 64, 64, dtype=torch.bool))
    for size, wanted in ((1, 1), (2, 1), (8, 16), (40, 16)):
        monkeypatch.setattr(engine.sampler, "batch_size", size)
        scorer = Engine(engine.generation).scorer
        read.clear()
        scorer.score([(edit, pictures, image)])
        assert set(read) == {wanted}
    read.clear()
    Scorer("tinyworld", "cpu", names=["clip_image_edited"]).score([(edit, pictures, image)])
    assert set(read) == {16}  # as `riebench score` does


@pytest.mark.slow
def test_features_moved_by_their_mean_push_as_hard_as_the_text_index_says(engine):
    (held,) = engine.references([(EDITS[5], 9)])
    typical = load_text_index(text_index_path(index.fingerprint(index.find(engine.backbone.name, "mid.0")))).typical
    number = int(typical.argmax())
    method = METHODS.get("chosen")(on=f"mid.0:{number}", unit="mean", strength=2.0)
    (result,) = engine.results([(held, [Variant(method, BLOCK_NAMES)])])
    direction = held.case.sae("mid.0").directions(torch.tensor([number]))[0]
    cells = int(held.case.edited_cells["mid.0"].sum())
    expected = 2.0 * float(typical[number]) * float(direction.norm()) * (cells * engine.backbone.steps) ** 0.5
    assert result.row["injected_norm"] == pytest.approx(expected, rel=1e-4) and expected > 0
    assert result.row["status"] == "ok" and not torch.equal(result.image, held.pictures.original)
