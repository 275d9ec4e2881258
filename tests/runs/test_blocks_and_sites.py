"""Runs of fewer blocks than the backbone has, with dictionaries of these alone; and of streams in place of updates."""

from __future__ import annotations

import dataclasses
import json
import shutil

import pandas as pd
import pytest
import torch
from sdxl_blocks import BLOCK_NAMES, BLOCKS

from baselines.dense import Dense
from baselines.region_means import RegionMeans
from baselines.sae import SAE
from riebench.analysis.frames import scores_of
from riebench.backbones.family import Site
from riebench.core.errors import UserError
from riebench.edits.edit import load_edits
from riebench.generation.sampler import Request
from riebench.runs.config import build_config
from riebench.runs.engine import Engine, open_engine
from riebench.runs.plan import plan, plan_variants
from riebench.runs.reference import Generation
from riebench.runs.run import run
from riebench.runs.setup import Setup
from sae_models import index

ONE = "up.0.1"
SMALL = {"categories": ["change_colour", "add_object"], "edits_per_category": 1, "seeds": [42], "resamples": 20}
SMALL |= {"batch_size": 8, "methods": ["noop", "sae"]}
EDIT = next(edit for edit in load_edits() if edit.category == "change_colour")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One's own dictionaries: the shipped one of one block, and an index that knows no other."""
    root = tmp_path_factory.mktemp("dictionaries")
    entry = index.find("tinyworld-turbo@1", ONE)
    shutil.copytree(index.default_root() / entry.folder, root / entry.folder)
    index.register(entry, root=root)
    assert len(json.loads((root / "index.json").read_text())) == 1
    return root


@pytest.fixture(scope="module")
def of_one(folder, tmp_path_factory):
    """A run of one block, with a dictionary of that block alone."""
    config = build_config(SMALL | {"blocks": [ONE], "dictionaries": str(folder)}, "here")
    return run(config, tmp_path_factory.mktemp("one"), device="cpu")


@pytest.fixture(scope="module")
def of_four(tmp_path_factory):
    return run(build_config(SMALL, "here"), tmp_path_factory.mktemp("four"), device="cpu")


@pytest.mark.slow
def test_a_run_of_one_block_knows_no_other(of_one):
    scores = of_one.scores
    assert (scores.status == "ok").all() and len(scores) == 2 * 2
    assert set(scores.blocks) == {"", ONE} and set(scores[scores.method == "sae"].blocks) == {ONE}
    assert [set(json.loads(row.features)) for row in scores.itertuples() if row.method == "sae"] == [{ONE}, {ONE}]
    assert of_one.manifest["blocks"] == [ONE] and of_one.manifest["config"]["blocks"] == [ONE]
    assert json.loads((of_one.folder / "manifest.json").read_text())["blocks"] == [ONE]
    assert of_one.report.is_file()


@pytest.mark.slow
def test_its_scores_are_those_of_a_run_of_four_blocks(of_one, of_four):
    assert of_four.manifest["blocks"] == list(BLOCK_NAMES)
    assert set(of_four.scores[of_four.scores.method == "sae"].blocks) == {
        "+".join(name for i, name in enumerate(BLOCK_NAMES) if number >> i & 1) for number in range(1, 16)
    }
    names = [score.name for score in scores_of(of_one.scores)]
    assert len(names) > 5 and names == [score.name for score in scores_of(of_four.scores)]
    for method, blocks in (("sae", ONE), ("noop", "")):
        one, four = (
            done.scores[(done.scores.method == method) & (done.scores.blocks == blocks)]
            .sort_values("edit")
            .reset_index(drop=True)
            for done in (of_one, of_four)
        )
        columns = ["edit", "seed", "features", "num_features", "injected_norm", "cells_original", *names]
        assert len(one) == 2
        pd.testing.assert_frame_equal(one[columns], four[columns], check_exact=True)


def test_only_that_block_is_traced(folder):
    config = build_config(SMALL | {"blocks": [ONE], "dictionaries": str(folder)}, "here")
    engine = open_engine(config.open_backbone(), "cpu", setup=config.setup("float32"), batch_size=2)
    seen = []
    for block in BLOCK_NAMES:
        module = engine.sampler.blocks.module(block)
        module.register_forward_hook(lambda *_, block=block: seen.append(block))
    (reference,) = engine.references([(EDIT, 42)], [SAE()])
    assert list(reference.case.original) == list(reference.case.edited) == [Site(ONE)]
    assert list(reference.case.original_cells) == list(reference.case.grids) == [ONE]
    assert reference.case.original[Site(ONE)].shape == (1, 64, 96)
    assert set(seen) == set(BLOCK_NAMES)  # the others still run
    assert list(engine.plan(reference, SAE()).additions) == [Site(ONE)]
    kinds = {(site.block, site.kind) for site in engine.references([(EDIT, 42)], [SAE(), Neuronal()])[0].case.original}
    assert kinds == {(ONE, "update"), (ONE, "neurons")}


class Neuronal(SAE):
    sites = "neurons"


def test_dictionaries_are_wanted_of_the_blocks_of_the_run_alone(folder, tmp_path):
    words = {"dictionaries": str(folder)}
    for blocks in ([ONE, "mid.0"], None):
        with pytest.raises(UserError, match="no dictionary is known for tinyworld-turbo@1 (mid.0|down.2.1)"):
            run(build_config(SMALL | words | {"blocks": blocks}, "here"), tmp_path / "run", device="cpu")
    assert not (tmp_path / "run" / "scores.parquet").exists()


def recipes(methods, blocks=None, **words) -> dict[str, list[str]]:
    """Method -> the keys of its results, on each subset of the blocks."""
    config = build_config(SMALL | {"blocks": blocks} | words, "here")
    backbone = config.open_backbone()
    variants = plan_variants(methods, [method.name for method in methods], backbone.blocks)
    (task,) = plan(backbone, [(EDIT, 42)], variants, config.setup("float32"))
    found: dict[str, list[str]] = {}
    for wanted in task.wanted:
        found.setdefault(wanted.variant.method.name, []).append(wanted.recipe)
    return found


def test_keys_of_other_blocks_and_other_sites_differ():
    methods = [Dense(), RegionMeans()]  # there is no dictionary of tinyworld's streams
    found = [recipes(methods, blocks, **words) for blocks in (None, [ONE]) for words in ({}, {"site": "stream"})]
    for method in methods:
        keys = [key for one in found for key in one[method.name]]
        assert len(set(keys)) == len(keys) == 2 * (15 + 1), method.name
    assert recipes(methods, [ONE], site="update")[Dense().name] != found[3][Dense().name]


def test_a_site_that_is_none_is_refused_before_anything_is_made(tmp_path):
    with pytest.raises(UserError, match="site holds 'steam'; did you mean 'stream'. -> give update or stream"):
        build_config(SMALL | {"site": "steam"}, "here")
    with pytest.raises(UserError, match="sites of kind 'neurons'.*use update or stream"):
        Setup(site="neurons")


@pytest.mark.slow
def test_methods_that_need_no_dictionary_run_on_the_stream(tmp_path):
    methods = ["noop", "dense", "region-means"]
    words = SMALL | {"methods": methods, "subsets_of": "dense", "blocks": [ONE, "mid.0"]}
    words |= {"categories": ["change_object", "change_background"]}  # which every block sees
    update, stream = (
        run(build_config(words | {"site": site}, "here"), tmp_path / site, device="cpu")
        for site in ("update", "stream")
    )
    for done, site in ((update, "update"), (stream, "stream")):
        assert (done.scores.status == "ok").all() and len(done.scores) == 2 * (1 + 3 + 1)
        assert done.manifest["setup"]["site"] == site and done.manifest["blocks"] == ["mid.0", ONE]
        assert (done.scores[done.scores.method != "noop"].injected_norm > 0).all()
    keys = ["edit", "method", "blocks"]
    both = update.scores.merge(stream.scores, on=keys, suffixes=("_u", "_s"))
    edited = both[both.method != "noop"]
    assert len(edited) == 8 and (edited.recipe_u != edited.recipe_s).all()
    assert (edited.injected_norm_u != edited.injected_norm_s).all()
    assert (edited.lpips_original_u != edited.lpips_original_s).any()
    noop = both[both.method == "noop"]
    assert (noop.lpips_original_u == 0).all() and (noop.lpips_original_s == 0).all()


def streams_by_hand(sampler, prompt: str, seed: int, change=None) -> torch.Tensor:
    """What comes into the module behind the block, `[C, h, w]`: the stream that the block put out."""
    seen = []

    def keep(_module, args):
        seen.append(args[0][0, :96].clone())

    handle = sampler.denoiser.get_submodule("up_blocks.0.resnets.2").register_forward_pre_hook(keep)
    try:
        sampler.generate([Request(prompt, seed, change)])
    finally:
        handle.remove()
    return seen[0]


@pytest.mark.slow
@pytest.mark.parametrize("method", [Dense(), RegionMeans()])
def test_a_stream_is_what_the_block_puts_out(engine, method):
    """With the whole image as region, the dense patch makes the stream the edited image's own."""
    assert BLOCKS[ONE] == "up_blocks.0.attentions.1"
    backbone = dataclasses.replace(engine.backbone, blocks=(ONE,))
    sampler = type(engine.sampler)(backbone, engine.sampler.pipeline, 2)
    other = Engine(Generation(sampler, Setup(site="stream")))
    edit = dataclasses.replace(EDIT, original_region="everything", edited_region="everything")
    (reference,) = other.references([(edit, 42)], [method])
    site = Site(ONE, "stream")
    assert list(reference.case.original) == [site]
    original, edited = (streams_by_hand(sampler, prompt, 42) for prompt in (edit.original_prompt, edit.edited_prompt))
    for trace, seen in ((reference.case.original, original), (reference.case.edited, edited)):
        torch.testing.assert_close(trace[site][0], seen.flatten(1).T, atol=1e-4, rtol=1e-4)
    change = other.plan(reference, method)
    assert change.sites == (site,)
    found = streams_by_hand(sampler, edit.original_prompt, 42, change)
    wanted = {
        "dense": edited,
        "region-means": original + (edited - original).mean(dim=(1, 2), keepdim=True),
    }[method.name]
    assert (wanted - original).abs().max() > 0.1
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)
    (replayed,) = other.generation.images([reference], [change])
    assert torch.equal(replayed, other.generation.image(edit.original_prompt, 42, change))
