"""What a run is to have: which methods, at which strengths, on which subsets of which blocks."""

from __future__ import annotations

import itertools

import pytest
from sdxl_blocks import BLOCK_NAMES

from riebench.core.errors import UserError
from riebench.runs.config import build_config
from riebench.runs.plan import plan_variants


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
