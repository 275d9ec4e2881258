"""Harvest and `riebench train`, and the bars of the shipped dictionaries on updates harvested anew."""

from __future__ import annotations

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import riebench.training as training_module
from riebench.backbones import BLOCK_NAMES
from riebench.cli import main
from riebench.errors import UserError
from riebench.lens import find_sites
from riebench.prompts import world_prompts
from riebench.sampling import Request, Sampler
from riebench.training import HARVEST_BATCH, harvest, train_dictionaries
from sae_models import index
from sae_models.evaluation import evaluate

BACKBONE = "tinyworld-turbo@1"


def test_rows_are_the_updates_of_each_prompt_cell_by_cell(sampler):
    prompts = world_prompts(3, seed=5)
    rows = harvest(sampler, ("mid.0",), prompts, seed=70)["mid.0"]
    assert rows.shape == (3 * 64, 96)
    (site,) = find_sites(sampler.unet, ("mid.0",), "update")
    third = sampler.generate([Request(prompts[2], 72)], [site])[0].trace[site]
    torch.testing.assert_close(rows[128 + 8 * 5 + 3], third[0, :, 5, 3])


def test_shipped_dictionaries_reach_their_bars_on_new_prompts(sampler):
    rows = harvest(sampler, BLOCK_NAMES, world_prompts(256, seed=999), seed=50_000)
    for block in BLOCK_NAMES:
        entry = index.find(BACKBONE, block)
        found = evaluate(index.open(entry), rows[block])
        assert entry.k <= 16 and found.l0 <= entry.k
        assert found.explained_variance_pooled >= 0.80, block
        assert found.dead_share <= 0.20, block
        assert found.explained_variance_pooled == pytest.approx(
            entry.evaluation["explained_variance_pooled"], abs=0.02
        ), "the index says what the weights do"
        assert np.isfinite(found.explained_variance_mean)


WORDS = ["train", "--blocks", "mid.0,up.0.1", "--prompts", "48", "--k", "4,2", "--width", "2,1"]


@pytest.fixture(scope="module")
def grid(tmp_path_factory):
    """A folder that `riebench train` has just filled."""
    out = tmp_path_factory.mktemp("grid")
    assert main([*WORDS, "--steps", "3", "--out", str(out)]) == 0
    return out


def test_train_makes_every_dictionary_of_the_grid(grid):
    entries = index.entries(grid)
    assert {(entry.block, entry.name, entry.k, entry.num_features) for entry in entries} == {
        (block, f"topk-k{k}-x{expansion}", k, 96 * expansion)
        for block in ("mid.0", "up.0.1") for k in (2, 4) for expansion in (1, 2)
    }  # fmt: skip
    for entry in entries:
        opened = index.open(entry, root=grid)
        assert (opened.encode(torch.randn(5, 96)) > 0).sum(dim=1).max() <= entry.k
    assert not list((grid / "state").iterdir()), "nothing is left of what only a killed training needs"


def test_dictionaries_are_stored_in_half_precision_and_evaluated_as_stored(grid, sampler):
    sampler_of_64 = Sampler(sampler.backbone, sampler.pipeline, HARVEST_BATCH)
    held_back = 48 // 16
    rows = harvest(sampler_of_64, ("mid.0", "up.0.1"), world_prompts(48, seed=0), seed=0)
    for entry in index.entries(grid):
        weights = load_file(grid / entry.folder / "sae_weights.safetensors")
        assert {value.dtype for value in weights.values()} == {torch.float16}
        found = evaluate(index.open(entry, root=grid), rows[entry.block][-held_back * 64 :])
        assert entry.evaluation == pytest.approx(dataclasses.asdict(found), abs=1e-4)


def test_train_goes_on_where_it_was_killed(grid, tmp_path, monkeypatch, capsys):
    """A checkpoint is spoilt and an entry is lost; these two are trained again, and nothing else is touched."""
    out = tmp_path / "grid"
    shutil.copytree(grid, out)
    whole = index.entries(grid)
    spoilt, lost = whole[2], whole[3]
    (out / spoilt.folder / "sae_weights.safetensors").write_bytes(b"half of it")
    (out / index.INDEX_FILE).write_text(json.dumps([dataclasses.asdict(entry) for entry in whole if entry != lost]))
    asked = []
    monkeypatch.setattr(training_module, "harvest", lambda *words: asked.append(words[1]) or harvest(*words))
    assert main([*WORDS, "--steps", "3", "--out", str(out)]) == 0
    assert asked == [[spoilt.block]], "one harvest, of the block that needs it"
    assert capsys.readouterr().out.count("trained already") == len(whole) - 2
    assert {entry.key: entry.sha256 for entry in index.entries(out)} == {entry.key: entry.sha256 for entry in whole}
    assert main([*WORDS, "--steps", "3", "--out", str(out)]) == 0
    assert len(asked) == 1, "nothing is harvested where nothing is left to train"


@pytest.mark.parametrize("change", [{"steps": 4}, {"prompts": 49}, {"unet_sha256": "of another U-Net"}])
def test_dictionaries_of_other_settings_or_weights_are_trained_again(grid, tmp_path, change, capsys):
    out = tmp_path / "grid"
    shutil.copytree(grid, out)
    entry = index.find(BACKBONE, "mid.0", "topk-k4-x1", root=grid)
    index.register(dataclasses.replace(entry, training=entry.training | change), root=out)
    words = ["train", "--blocks", "mid.0", "--prompts", "48", "--k", "4", "--width", "1", "--steps", "3"]
    assert main([*words, "--out", str(out)]) == 0
    assert "[1/1] mid.0 topk-k4-x1: explained variance" in capsys.readouterr().out
    assert index.find(BACKBONE, "mid.0", "topk-k4-x1", root=out) == entry


def test_settings_that_cannot_be_meant_are_refused_before_the_harvest(tmp_path, monkeypatch):
    monkeypatch.setattr(training_module, "harvest", lambda *words: pytest.fail("harvested"))
    settings = {"k": (4,), "expansion": (2,), "prompts": 48, "steps": 3, "seed": 0, "device": "cpu"}
    for change, message in (
        ({"prompts": 3}, "too few"),
        ({"steps": 0}, "steps is 0"),
        ({"k": (4, 0)}, "k is 0"),
        ({"expansion": (-1,)}, "num_features is -96"),
    ):
        with pytest.raises(UserError, match=message):
            train_dictionaries(BACKBONE, ("mid.0",), tmp_path, **(settings | change))
    with pytest.raises(UserError, match="did you mean 'tinyworld-turbo@"):
        train_dictionaries("tinyworld-turbo@2", ("mid.0",), tmp_path, **settings)


def test_too_few_rows_for_a_step_are_refused(tmp_path):
    with pytest.raises(UserError, match="960 vectors to train on, and a step takes 2048"):
        train_dictionaries(
            BACKBONE, ("mid.0",), tmp_path, k=(4,), expansion=(2,), prompts=16, steps=3, seed=0, device="cpu"
        )
