"""What a run is to have: which methods, at which strengths, on which subsets of which blocks."""

from __future__ import annotations

import itertools
import shutil

import pytest
import torch
from sdxl_blocks import BLOCK_NAMES

from baselines import METHODS
from riebench.core.errors import UserError
from riebench.edits.edit import load_edits
from riebench.methods.means import feature_means
from riebench.runs.config import build_config
from riebench.runs.plan import Variant, plan, plan_variants
from sae_models import index


def variants(**words) -> list[tuple[str, float, tuple[str, ...]]]:
    config = build_config({"methods": ["noop", "sae"], **words}, "here")
    methods = [method.build() for method in config.methods]
    return [
        (variant.method.name, variant.method.strength, variant.blocks)
        for variant in plan_variants(methods, config.subsets_of, config.open_backbone().blocks)
    ]


def every_subset(blocks):
    return {subset for size in range(1, len(blocks) + 1) for subset in itertools.combinations(blocks, size)}


def test_a_list_of_strengths_is_a_method_at_each_and_subsets_are_of_the_one_nearest_1():
    methods = ["noop", {"name": "sae", "strength": [0.5, 2, 1.25]}, {"name": "dense", "strength": [1]}]
    found = variants(methods=methods, subsets_of="sae")
    assert {blocks for name, strength, blocks in found if (name, strength) == ("sae", 1.25)} == every_subset(
        BLOCK_NAMES
    )
    others = [(name, strength, blocks) for name, strength, blocks in found if strength != 1.25]
    assert others == [
        ("noop", 0.0, ()),
        ("sae", 0.5, BLOCK_NAMES),
        ("sae", 2, BLOCK_NAMES),
        ("dense", 1, BLOCK_NAMES),
    ]


def test_several_methods_can_be_run_on_every_subset():
    methods = ["noop", "sae", {"name": "sae", "label": "equal", "budget": "norm"}, "random"]
    found = variants(methods=methods, subsets_of=["sae", "equal"])
    for name in ("sae", "equal"):
        assert {blocks for of, _, blocks in found if of == name} == every_subset(BLOCK_NAMES)
    assert [blocks for of, _, blocks in found if of == "random"] == [BLOCK_NAMES]


def test_a_run_may_be_of_fewer_blocks():
    found = variants(blocks=["up.0.1", "mid.0"])  # in whatever order
    assert {blocks for name, _, blocks in found if name == "sae"} == every_subset(("mid.0", "up.0.1"))


def test_a_list_of_strengths_must_hold_numbers_and_different_ones_are_told_apart(tmp_path):
    from riebench.runs.run import run

    config = build_config({"methods": ["noop", {"name": "sae", "strength": [1, 1]}]}, "here")
    with pytest.raises(UserError, match="two methods share name and strength"):
        run(config, tmp_path, device="cpu")
    with pytest.raises(UserError, match="unknown block 'up.0.7'"):
        build_config({"blocks": ["up.0.7"]}, "here")
    with pytest.raises(UserError, match="the run has no method 'dense'"):
        build_config({"subsets_of": ["sae", "dense"]}, "here")


def test_the_means_that_a_method_moves_features_by_are_part_of_the_key(tmp_path, monkeypatch):
    """Those beside the weights where they are, and else those of the text index, without which nothing is made."""
    shipped = index.find("tinyworld-turbo@1", "mid.0")
    shutil.copytree(index.default_root() / shipped.folder, tmp_path / "mid.0")
    config = build_config({"blocks": ["mid.0"], "dictionaries": str(tmp_path)}, "here")
    backbone, setup, case = config.open_backbone(), config.setup("float32"), (load_edits()[0], 42)

    def recipe(**words) -> str:
        method = METHODS.get("chosen")(on="mid.0:3", **words)
        (task,) = plan(backbone, [case], [Variant(method, ("mid.0",))], setup)
        return task.wanted[0].recipe

    plain, of_index = recipe(), recipe(unit="mean")
    for means in (torch.ones(shipped.num_features), torch.arange(float(shipped.num_features))):
        torch.save(means, tmp_path / "mid.0" / "mean.pt")
        assert torch.equal(feature_means(*setup.dictionary_of(backbone, "mid.0")), means)
        assert recipe() == plain
        assert recipe(unit="mean") not in (plain, of_index)
        of_index = recipe(unit="mean")  # the next differ from these too
    (tmp_path / "mid.0" / "mean.pt").unlink()
    monkeypatch.setattr("riebench.methods.means.text_index_path", lambda _: tmp_path / "nothing")
    with pytest.raises(UserError, match="how strong the features of .* mid.0 are -> .*riebench index-text"):
        recipe(unit="mean")
    assert recipe() == plain
