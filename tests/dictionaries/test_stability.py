"""Which dictionaries are compared with one another, and what is said of them."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

from riebench.cli import main
from riebench.core.errors import UserError
from riebench.dictionaries.stability import compare_pairs, find_pairs
from sae_models import checkpoint, index
from sae_models.comparison import stability
from sae_models.topk import TopKConfig, TopKSAE

BACKBONE = "tinyworld-turbo@1"


def entry_of(root, name, block="mid.0", k=4, training=None, sae=None) -> index.Entry:
    sae = sae or TopKSAE(TopKConfig(12, 24, k), seed=len(name)).requires_grad_(False)
    folder = f"{block}/{name}"
    sha256 = checkpoint.save(root / folder, sae, {})
    entry = index.Entry(name, BACKBONE, block, "topk", k, 24, 12, folder, sha256, training=training or {})
    index.register(entry, root=root)
    return entry


def trained(seed: int, **settings) -> dict:
    """As trainings are told: the seed as a key, and inside an architecture."""
    return {"steps": 600, "architecture": f"Architecture(width=12, seed={seed})", "data": {"seed": seed}} | settings


def names(pairs) -> list[tuple[str, str, str]]:
    return [(pair.a.block, pair.a.name, pair.partner) for pair in pairs]


def test_entries_that_differ_in_the_seed_alone_are_pairs(tmp_path):
    entries = [
        entry_of(tmp_path, "first", training=trained(0)),
        entry_of(tmp_path, "longer", training=trained(1, steps=700)),
        entry_of(tmp_path, "third", training=trained(3)),
        entry_of(tmp_path, "third", block="up.0.1", training=trained(3)),
        entry_of(tmp_path, "sparser", k=2, training=trained(4)),
        entry_of(tmp_path, "eleventh", training=trained(11)),
        entry_of(tmp_path, "unknown"),
        entry_of(tmp_path, "unknown too"),
    ]
    assert names(find_pairs(entries, tmp_path)) == [
        ("mid.0", "first", "third"), ("mid.0", "first", "eleventh"), ("mid.0", "third", "eleventh"),
    ]  # fmt: skip


def test_those_of_another_folder_have_to_be_of_one_shape_alone(tmp_path):
    here, other = tmp_path / "here", tmp_path / "other"
    entries = [entry_of(here, "a", training=trained(0)), entry_of(here, "b", block="up.0.1")]
    entry_of(other, "a", training=trained(1, steps=700))
    entry_of(other, "c", k=2)
    entry_of(other, "d", block="down.2.1")
    assert names(find_pairs(entries, here, other)) == [("mid.0", "a", "other/a")]
    with pytest.raises(UserError, match="no dictionary of the same.*leave --other out"):
        find_pairs(entries[1:], here, other)
    with pytest.raises(UserError, match="no folder"):
        find_pairs(entries, here, tmp_path / "nowhere")


def test_a_copy_in_another_order_is_stable_and_another_one_is_not(tmp_path):
    sae = TopKSAE(TopKConfig(12, 24, 4), seed=1).requires_grad_(False)
    copied = TopKSAE(TopKConfig(12, 24, 4), seed=1).requires_grad_(False)
    copied.W_dec.copy_(sae.W_dec[torch.randperm(24, generator=torch.Generator().manual_seed(0))])
    entries = [
        entry_of(tmp_path, "first", training=trained(0), sae=sae),
        entry_of(tmp_path, "copy", training=trained(1), sae=copied),
        entry_of(tmp_path, "another", training=trained(2)),
    ]
    same, *others = compare_pairs(find_pairs(entries, tmp_path))
    assert (same["name"], same["partner"]) == ("first", "copy")
    assert (same["cosine"], same["shared_share"]) == pytest.approx((1, 1))
    assert all(other["cosine"] < 0.9 for other in others) and len(others) == 2


def test_a_checkpoint_that_is_not_the_registered_one_is_told(tmp_path):
    entries = [entry_of(tmp_path, name, training=trained(seed)) for seed, name in enumerate(("a", "bc"))]
    broken = [entries[0], dataclasses.replace(entries[1], sha256="0" * 64)]
    with pytest.raises(UserError, match="sha256"):
        compare_pairs(find_pairs(broken, tmp_path))


@pytest.mark.slow
def test_trained_ones_of_two_seeds_are_compared_by_the_command(tmp_path, capsys, monkeypatch):
    """Two of one folder, and one of them with one that was also trained on other noise."""
    monkeypatch.setattr("riebench.dictionaries.evaluate.OWN_ROWS", 3 * 64)
    one, other = tmp_path / "one", tmp_path / "other"
    words = ["train", "--blocks", "mid.0", "--count", "48", "--k", "4", "--width", "1", "--steps", "40"]
    assert main([*words, "--seeds", "0,1", "--out", str(one)]) == 0
    assert main([*words, "--seed", "9", "--seeds", "7", "--out", str(other)]) == 0
    capsys.readouterr()
    words = ["evaluate", "--dictionaries", str(one), "--on", BACKBONE, "--count", "1", "--images", "0", "--json"]
    assert main([*words, "--other", str(other)]) == 0
    pairs = json.loads(capsys.readouterr().out)["stability"]
    first, second = "topk-k4-x1", "topk-k4-x1-s1"
    assert [(pair["name"], pair["partner"]) for pair in pairs] == [
        (first, second), (first, "other/topk-k4-x1-s7"), (second, "other/topk-k4-x1-s7"),
    ]  # fmt: skip
    saes = [index.open(index.find(BACKBONE, "mid.0", name, root=one), root=one) for name in (first, second)]
    assert pairs[0]["cosine"] == stability(*saes).cosine
    assert all(0.1 < pair["cosine"] < 0.99 for pair in pairs)
