"""Harvest and `riebench train`, and the bars of the shipped dictionaries on updates harvested anew."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from riebench.backbones import BLOCK_NAMES
from riebench.cli import main
from riebench.errors import UserError
from riebench.harvest import harvest, train_dictionaries, world_prompts
from riebench.lens import find_sites
from riebench.sampling import Request
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


def test_train_writes_a_dictionary_that_is_found_and_opened(tmp_path, capsys):
    words = ["train", "--blocks", "up.0.1", "--out", tmp_path, "--prompts", 32, "--steps", 3, "--k", 4, "--width", 2]
    assert main([str(word) for word in words]) == 0
    assert "explained variance" in capsys.readouterr().out
    (entry,) = index.entries(tmp_path)
    assert (entry.block, entry.k, entry.num_features, entry.width) == ("up.0.1", 4, 192, 96)
    opened = index.open(index.find(BACKBONE, "up.0.1", root=tmp_path), root=tmp_path)
    assert (opened.encode(torch.randn(5, 96)) > 0).sum(dim=1).max() <= 4


def test_too_few_prompts_and_unknown_backbones_are_refused(tmp_path):
    settings = {"k": 4, "expansion": 2, "steps": 3, "seed": 0, "device": "cpu"}
    with pytest.raises(UserError, match="too few"):
        train_dictionaries(BACKBONE, ("mid.0",), tmp_path, prompts=3, **settings)
    with pytest.raises(UserError, match="did you mean 'tinyworld-turbo@1'"):
        train_dictionaries("tinyworld-turbo@2", ("mid.0",), tmp_path, prompts=32, **settings)
