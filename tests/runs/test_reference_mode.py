"""Reference mode against a second, slow implementation of the published procedure, on a pipeline of SDXL's shape: 320
channels in the deepest level for every setting and SDXL's 1280 for some, on 8x8 cells. Same selected features, same
added tensors, same image."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from published_procedure import BLOCKS, published, random_sae, sdxl_shaped_pipeline
from sdxl_blocks import BLOCK_NAMES

import riebench
from baselines import METHODS
from riebench.backbones.family import Site
from riebench.backbones.table import BACKBONES, Backbone
from riebench.core.errors import UserError
from riebench.edits.edit import Edit, load_edits
from riebench.generation.sampler import Request, Sampler
from riebench.methods.method import Case
from riebench.methods.modes import MODES
from riebench.regions.find import find_regions, region_cells
from riebench.regions.grounding import published_cells
from riebench.runs.config import build_config
from riebench.runs.engine import Engine
from riebench.runs.pictures import Pictures
from riebench.runs.plan import Variant
from riebench.runs.plan import plan as plan_run
from riebench.runs.reference import Generation, Reference
from riebench.runs.run import run
from riebench.runs.setup import Setup
from sae_models.topk import TopKConfig, TopKSAE

EDIT = Edit("e", "change_colour", "a red heart in the sky", "a blue striped circle at night", "heart", "circle")
CHANNELS, FULL, SIDE = 320, 1280, 8
STEPS = {CHANNELS: 2, FULL: 1}
IMAGE = 2e-4  # of a pixel's range: additions are summed in another order
METHOD = {"sae": "sae", "sae_adaptive": "sae", "steering": "dense", "neurons": "neurons"}


@pytest.fixture(scope="module")
def channels(request):
    return getattr(request, "param", CHANNELS)


@pytest.fixture(scope="module")
def sampler(channels):
    backbone = Backbone("shaped@2", "/nowhere", STEPS[channels], 0.0, grounder="everything", judges="sdxl")
    return Sampler(backbone, sdxl_shaped_pipeline(channels, side=SIDE), batch_size=1)


@pytest.fixture(scope="module")
def plain_saes(channels):
    return {block: random_sae(seed, channels) for seed, block in enumerate(BLOCKS)}


@pytest.fixture(scope="module")
def masks():
    generator = torch.Generator().manual_seed(7)
    mask_e, mask_o = torch.rand(2, SIDE, SIDE, generator=generator) < 0.3
    return mask_e, mask_o


@pytest.fixture(scope="module")
def samples(sampler):
    sites = [site for kind in ("update", "neurons") for site in sampler.blocks.sites(BLOCK_NAMES, kind)]
    return [sampler.generate([Request(prompt, 42)], sites)[0] for prompt in (EDIT.original_prompt, EDIT.edited_prompt)]


@pytest.fixture(scope="module")
def traces(channels):
    """What the peer has traced, of one pipeline."""
    return {}


def same_sae(plain) -> TopKSAE:
    features, channels = plain.W_dec.shape
    sae = TopKSAE(TopKConfig(width=channels, num_features=features, k=plain.k)).requires_grad_(False)
    sae.load_state_dict({"W_enc": plain.W_enc, "b_enc": plain.b_lat, "W_dec": plain.W_dec, "b_dec": plain.b_pre})
    return sae


def make_case(samples, masks, plain_saes, category: str, kind: str) -> Case:
    """As the engine gives it in reference mode."""
    mask_e, mask_o = masks
    original, edited = ({s: v for s, v in sample.trace.items() if s.kind == kind} for sample in samples)
    if category == "add_object":
        mask_o = mask_e
    if category == "delete_object":
        mask_e = mask_o
    cells_o, cells_e = (dict.fromkeys(BLOCK_NAMES, mask.flatten()) for mask in (mask_o, mask_e))
    saes = {block: same_sae(plain) for block, plain in plain_saes.items()}
    return Case(replace(EDIT, category=category), 42, original, edited, cells_o, cells_e, saes.get, MODES["reference"])


def in_maps(value_tnc: torch.Tensor) -> torch.Tensor:
    """`[T, C, h, w]`, as the peer has them."""
    return value_tnc.transpose(1, 2).unflatten(2, (SIDE, SIDE))


def make_method(mode: str, k: int, settings: dict):
    words = dict(settings)
    if mode != "steering":
        words |= {"k": k, "aggregation": words.pop("aggregate", "first"), "pool": words.pop("pool", "")}
    if mode == "sae_adaptive":
        words["mode"] = "adaptive"
    statistic = words.pop("stat", "mean")
    return METHODS.get(METHOD[mode])(strength=1.5, statistic=statistic, **words)


def theirs(sampler, masks, plain_saes, traces, category, mode, k, settings):
    words = dict(settings)
    return published(
        sampler.pipeline,
        EDIT.edited_prompt,
        EDIT.original_prompt,
        *masks,
        category=category,
        mode=mode,
        steps=sampler.backbone.steps,
        strength=1.5,
        k=k,
        combine_blocks=words.pop("pool", "all") == "all",
        saes=plain_saes,
        traces=traces,
        **words,
    )


def site_of(place) -> Site:
    return Site(place) if isinstance(place, str) else Site(place[0], "neurons", place[1])


CASES = [
    ("change_colour", "sae", 60, {}),
    ("add_object", "sae", 60, {"keep_spatial": False, "stat": "quantile", "aggregate": "mean"}),
    ("add_object", "sae", 60, {"placement": "original", "only_add": True}),
    ("delete_object", "sae", 60, {}),
    ("delete_object", "sae", 60, {"placement": "original", "only_add": True, "stat": "max"}),
    ("change_colour", "sae", 40, {"placement": "original", "stat": "max", "pool": "block"}),
    ("change_colour", "sae", 60, {"only_add": True}),
    ("change_colour", "sae_adaptive", 60, {}),
    ("change_colour", "sae_adaptive", 60, {"only_add": True, "placement": "original"}),
    ("add_object", "sae_adaptive", 60, {"only_add": True}),
    ("delete_object", "sae_adaptive", 60, {"keep_spatial": False, "stat": "quantile"}),
    ("change_style", "steering", 0, {}),
    ("change_style", "steering", 0, {"only_add": True, "keep_spatial": False}),
    ("delete_object", "steering", 0, {"keep_spatial": False, "stat": "max"}),
    ("delete_object", "steering", 0, {"placement": "original", "only_add": True}),
    ("change_pose", "neurons", 500, {}),
    ("delete_object", "neurons", 500, {"placement": "original", "only_add": True}),
    ("change_pose", "neurons", 800, {"aggregate": "mean", "keep_spatial": False, "stat": "quantile"}),
]


WIDTHS = [(CHANNELS, *case) for case in CASES]
WIDTHS += [(FULL, *CASES[number]) for number in (0, 15)]  # features of SAEs, and neurons


@pytest.mark.slow
@pytest.mark.parametrize(
    ("channels", "category", "mode", "k", "settings"), WIDTHS, indirect=["channels"], scope="module"
)
def test_same_features_same_additions_same_image(
    sampler, samples, masks, plain_saes, traces, category, mode, k, settings
):
    case = make_case(samples, masks, plain_saes, category, "neurons" if mode == "neurons" else "update")
    plan = make_method(mode, k, settings).plan(case)
    expected = theirs(sampler, masks, plain_saes, traces, category, mode, k, settings)
    for numbers, side in ((expected.on, "on"), (expected.off, "off")):
        for place, wanted in numbers.items():
            assert sorted(plan.chosen[site_of(place).name][side]) == sorted(wanted.tolist())
    if mode != "steering":
        assert sum(map(len, expected.on.values())) == k * (4 if settings.get("pool") == "block" else 1)
        only_added = settings.get("only_add", False) and category != "delete_object" and mode != "sae_adaptive"
        assert any(map(len, expected.off.values())) == (not only_added)
    added = expected.deltas
    if mode != "sae_adaptive":  # there it is known only while the image is made, and the image holds it
        for place, value in added.items():
            ours = plan.additions[site_of(place)].dense(SIDE * SIDE)
            ours = ours if isinstance(place, tuple) else in_maps(ours)
            torch.testing.assert_close(ours, value, atol=1e-4 * float(value.abs().max()), rtol=1e-4)
    assert max(float(value.abs().max()) for value in added.values()) > 0.1
    (shown,) = sampler.generate([Request(EDIT.original_prompt, 42, plan)])
    assert (expected.image - samples[0].image).abs().max() > 20 * IMAGE
    torch.testing.assert_close(shown.image, expected.image, atol=IMAGE, rtol=0)


FEWER = [
    ("change_colour", "sae", 60, {}, ("mid.0", "up.0.1")),
    ("delete_object", "sae_adaptive", 60, {"aggregate": "mean"}, ("down.2.1", "up.0.0", "up.0.1")),
    ("change_style", "steering", 0, {}, ("up.0.0",)),
    ("change_pose", "neurons", 500, {}, ("mid.0", "up.0.0")),
]


@pytest.mark.slow
@pytest.mark.parametrize(("category", "mode", "k", "settings", "blocks"), FEWER)
def test_with_fewer_blocks_features_are_chosen_among_theirs(
    sampler, samples, masks, plain_saes, traces, category, mode, k, settings, blocks
):
    """All variants of a run at once: what is chosen for the whole and for the part are other features."""
    case = make_case(samples, masks, plain_saes, category, "neurons" if mode == "neurons" else "update")
    method, reference = make_method(mode, k, settings), Reference(case, None, samples[0], "")
    asked = [Variant(method, BLOCK_NAMES), Variant(method, blocks)]
    whole, part = (plan.intervention for plan in engine_of(sampler, "reference")._plan(reference, asked))
    for plan, used in ((whole, BLOCK_NAMES), (part, blocks)):
        expected = theirs(sampler, masks, plain_saes, traces, category, mode, k, {**settings, "blocks": used})
        assert set(plan.blocks) == set(used)
        for numbers, side in ((expected.on, "on"), (expected.off, "off")):
            assert sum(map(len, numbers.values())) == (0 if mode == "steering" else k)
            for place, wanted in numbers.items():
                assert sorted(plan.chosen[site_of(place).name][side]) == sorted(wanted.tolist())
        if used == blocks:
            (shown,) = sampler.generate([Request(EDIT.original_prompt, 42, plan)])
            torch.testing.assert_close(shown.image, expected.image, atol=IMAGE, rtol=0)
    strict = [plan.intervention for plan in engine_of(sampler, "strict")._plan(reference, asked)]
    assert strict[1].chosen == strict[0].restricted(blocks).chosen
    assert part.chosen != whole.restricted(blocks).chosen or mode == "steering"


@pytest.mark.slow
def test_neurons_that_are_read_again_are_chosen_among_a_subset_s_too(engine, monkeypatch):
    edit = next(edit for edit in load_edits() if edit.category == "change_colour")
    neurons, found = METHODS.get("neurons")(k=30, aggregation="mean"), {}
    for held in (True, False):
        monkeypatch.setattr("riebench.runs.reference.HELD_BYTES", float("inf") if held else 0)
        reference = of_mode(engine, "reference")
        (shared,) = reference.references([(edit, 42)], [neurons])
        assert bool(shared.large) != held
        asked = [Variant(neurons, blocks) for blocks in (("mid.0",), ("mid.0", "up.0.1"), BLOCK_NAMES)]
        found[held] = list(reference.results([(shared, asked)]))
        assert [result.row["num_features"] for result in found[held]] == [60, 60, 60]
    for one, other in zip(found[True], found[False], strict=True):
        assert one.chosen == other.chosen and torch.equal(one.image, other.image)


def test_neurons_have_no_largest_value_in_reference_mode():
    backbone, edits = BACKBONES.get("tinyworld-turbo@1"), load_edits()[:1]
    variants = [Variant(METHODS.get("neurons")(statistic="max"), BLOCK_NAMES)]
    with pytest.raises(UserError, match="neurons: the published code has no statistic 'max'.*use mean or quantile"):
        plan_run(backbone, [(edits[0], 42)], variants, Setup(mode="reference", mask_rule="published"))
    assert plan_run(backbone, [(edits[0], 42)], variants, Setup())
    for method in (METHODS.get("neurons")(statistic="quantile"), METHODS.get("dense")(statistic="max")):
        assert plan_run(
            backbone, [(edits[0], 42)], [Variant(method, BLOCK_NAMES)], Setup(mode="reference", mask_rule="published")
        )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stat", "keep_spatial", "placement", "aggregate"),
    itertools.product(["mean", "quantile", "max"], [True, False], ["edited", "original"], ["first", "mean"]),
)
def test_every_setting_of_static_transport_is_the_published_one(
    samples, masks, plain_saes, stat, keep_spatial, placement, aggregate
):
    """The additions alone, from the same traces."""
    from published_procedure import region_rows, select, static_delta

    case = make_case(samples, masks, plain_saes, "change_colour", "update")
    settings = {"stat": stat, "keep_spatial": keep_spatial, "placement": placement, "aggregate": aggregate}
    plan = make_method("sae", 80, settings).plan(case)
    z_e, z_o = (
        {block: plain_saes[block].encode(region_rows(in_maps(trace[Site(block)]), mask)) for block in BLOCKS}
        for trace, mask in ((case.edited, masks[0]), (case.original, masks[1]))
    )
    on, off = select(z_e, z_o, 80, aggregate=aggregate)
    for block in BLOCKS:
        expected = static_delta(
            z_e[block],
            z_o[block],
            plain_saes[block].W_dec,
            on[block],
            off[block],
            *masks,
            strength=1.5,
            stat=stat,
            keep_spatial=keep_spatial,
            placement=placement,
        )
        ours = in_maps(plan.additions[Site(block)].dense(SIDE * SIDE))
        torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-4)


def engine_of(sampler, mode: str) -> Engine:
    return Engine(Generation(sampler, Setup(mode=mode, mask_rule=MODES[mode].mask_rules[0])))


def of_mode(engine, mode: str) -> Engine:
    """An engine of the same sampler, in a mode."""
    return engine_of(engine.sampler, mode)


class Painted:
    """A grounder that finds what is painted in an image: bright red pixels are the heart, in two halves."""

    settings: dict = {}

    def detections(self, images_bchw, phrases):
        assert set(phrases) <= {("heart",), ("foreground",)}
        found = []
        for image in images_bchw:
            red = image[0] > 0.9
            left = red.clone()
            left[:, red.shape[1] // 2 :] = False
            found.append(torch.stack([left, red & ~left]) if red.any() else red.new_zeros(0, *red.shape))
        return found


def painted(y: int, x: int) -> torch.Tensor:
    image = torch.zeros(3, 512, 512)
    image[0, y : y + 100, x : x + 140] = 1
    return image


@pytest.mark.slow
def test_regions_of_reference_mode_are_whole_cells_and_objects_that_come_or_go_have_one_on_both_images():
    edit = replace(EDIT, edited_region="heart")
    original, edited = painted(100, 200), painted(300, 50)
    cases = [
        (replace(edit, category=name), original, edited) for name in ("change_pose", "add_object", "delete_object")
    ]
    change, add, delete = find_regions(Painted(), cases, (16, 16), MODES["reference"].look)
    cells = [
        [region_cells(region, (16, 16), "published").reshape(16, 16) for region in regions]
        for regions in (change, add, delete)
    ]
    for regions, found in zip((change, add, delete), cells, strict=True):
        for region, cell in zip(regions, found, strict=True):
            assert torch.equal(region, cell.repeat_interleave(32, 0).repeat_interleave(32, 1))
    (c_o, c_e), (a_o, a_e), (d_o, d_e) = cells
    assert not torch.equal(c_o, c_e) and torch.equal(a_o, a_e) and torch.equal(a_e, c_e)
    assert torch.equal(d_o, c_o) and torch.equal(d_e, c_o)
    strict = find_regions(Painted(), cases[2:], (16, 16), MODES["strict"].look)[0]
    assert torch.equal(strict[0], strict[1]) and torch.equal(strict[0], original[0] > 0.9)


def test_a_region_that_is_not_there_is_empty_and_no_cell_stands_in_for_it():
    nothing = torch.zeros(3, 512, 512)
    edit = replace(EDIT, original_region="background", edited_region="not heart")
    (regions,) = find_regions(Painted(), [(edit, nothing, nothing)], (16, 16), MODES["reference"].look)
    assert not regions.any()


@pytest.mark.slow
def test_the_engine_gives_methods_both_images_of_a_deletion_in_the_original_s_region(engine):
    reference = of_mode(engine, "reference")
    delete = next(edit for edit in load_edits() if edit.category == "delete_object")
    change = next(edit for edit in load_edits() if edit.category == "change_colour")
    references = reference.references([(delete, 42), (change, 42)])
    deleted, changed = (found.case for found in references)
    assert deleted.mode is changed.mode is MODES["reference"]
    for case, pictures in zip((deleted, changed), (found.pictures for found in references), strict=True):
        images, phrases = [pictures.original, pictures.edited], [case.edit.original_region, case.edit.edited_region]
        own = published_cells(engine.regions.grounder, torch.stack(images), phrases, (8, 8))
        for block in BLOCK_NAMES:
            assert case.grids[block] == (8, 8)
            assert torch.equal(case.original_cells[block], own[0].flatten()) and own[0].any()
            assert torch.equal(case.edited_cells[block], own[0 if case is deleted else 1].flatten())
    for block in BLOCK_NAMES:
        assert not torch.equal(deleted.edited[Site(block)], deleted.original[Site(block)])
        (edited,) = engine.sampler.generate([Request(delete.edited_prompt, 42)], [Site(block)])
        torch.testing.assert_close(deleted.edited[Site(block)], edited.trace[Site(block)])
    strict = engine.references([(delete, 42)])[0].case
    assert strict.mode is MODES["strict"] and torch.equal(strict.edited_cells["mid.0"], strict.original_cells["mid.0"])


@pytest.mark.slow
def test_a_run_in_reference_mode_says_so_in_every_row(tmp_path):
    config = build_config(
        {
            "mode": "reference",
            "edits_per_category": 1,
            "categories": ["change_colour", "delete_object"],
            "blocks": ["mid.0", "up.0.1"],
            "methods": [
                "noop",
                {"name": "sae", "k": 40},
                {"name": "sae", "k": 40, "mode": "adaptive", "label": "live"},
            ],
            "resamples": 50,
        },
        "here",
    )
    run(replace(config, methods=config.methods[:2]), tmp_path / "run", device="cpu")
    done = run(config, tmp_path / "run", device="cpu")  # the regions are read from their pictures again
    whole = run(config, tmp_path / "whole", device="cpu")
    pd.testing.assert_frame_equal(done.scores, whole.scores, check_exact=True)
    assert set(done.scores["mode"]) == {"reference"} and set(done.scores["seed"]) == {42}
    assert (done.scores["status"] == "ok").all() and done.manifest["setup"]["mask_rule"] == "published"
    whole = done.scores[done.scores.blocks == "mid.0+up.0.1"]
    assert set(whole.method) == {"sae", "live"} and (whole.num_features == 80).all()  # all blocks share one k
    assert np.isfinite(whole[whole.method == "sae"]["injected_norm"]).all()
    assert done.scores[["lpips_original", "clip_text_edited"]].notna().all().all()


def test_modes_and_seeds_that_do_not_go_together_are_refused():
    with pytest.raises(UserError, match="the seed 42 alone"):
        build_config({"mode": "reference", "seeds": [1, 2]}, "here")
    with pytest.raises(UserError, match="did you mean 'reference'"):
        build_config({"mode": "refrence"}, "here")
    with pytest.raises(UserError, match="does not go with mode"):
        build_config({"mask_rule": "published"}, "here")


def test_prompts_are_scored_with_their_marks_in_reference_mode_alone(engine):
    caption = "flat poster of a standing red plain heart in the sky"
    marked = riebench.Edit("m", "change_colour", caption, caption.replace("red", "[blue]"), "heart", "heart")
    scores = {}
    for mode in MODES:
        scorer = of_mode(engine, mode).scorer
        image = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0))
        pictures = Pictures(image, image, torch.ones(2, 64, 64, dtype=torch.bool))
        scores[mode] = scorer.score([(marked, pictures, image)])[0]["clip_text_edited"]
    assert scores["strict"] != scores["reference"]
