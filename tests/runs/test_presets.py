"""Shipped runs: which one a name means is decided by the backbone, and nothing of one kind runs on another."""

from __future__ import annotations

import pytest

import riebench
from baselines.neurons import Neurons
from baselines.sae import SAE
from riebench.backbones.table import BACKBONES
from riebench.cli import main
from riebench.core.errors import UserError
from riebench.runs.config import MethodConfig, RunConfig, build_config, preset_names, read_config
from riebench.runs.plan import plan_variants

SDXL = "sdxl-turbo@4"
LIKE = {"name": "mine@4", "like": SDXL, "folder": "/models/mine"}
FEATURES, NEURONS, BLOCKS = 5120, 51_200, 4  # of a block of SDXL; protocol §5 has four times as many in all


def settings(config: RunConfig) -> list[tuple]:
    return [(method.name, method.strength, getattr(method, "k", None)) for method in config.build_methods()]


def test_tinyworlds_quickstart_is_what_it_was():
    """Field by field: keys of results depend on nothing else of a configuration."""
    expected = RunConfig(
        backbone="tinyworld-turbo@1",
        edits="tinyworld",
        edits_per_category=12,
        seeds=(42, 43),
        methods=(
            MethodConfig("noop"),
            MethodConfig("oracle-prompt"),
            MethodConfig("sae", {"k": 32}),
            MethodConfig("sae", {"k": 32, "budget": "norm"}, label="sae-equal-norm"),
            MethodConfig("dense"),
            MethodConfig("random", {"k": 32}),
            MethodConfig("prompt-injection"),
        ),
        subsets_of=("sae", "prompt-injection"),
    )
    assert read_config("quickstart") == read_config("quickstart", {"backbone": "tinyworld-turbo@1"}) == expected
    assert expected.build_methods() == [method.build() for method in expected.methods]  # their dataclasses' defaults
    assert RunConfig().edits == "tinyworld" and RunConfig().build_methods()[1] == SAE(k=32)


@pytest.mark.parametrize("backbone", [name for name in BACKBONES.names() if name.startswith("sdxl")] + [LIKE])
def test_nothing_of_tinyworlds_size_runs_on_sdxl(backbone):
    for name in preset_names("sdxl"):
        config = read_config(name, {"backbone": backbone})
        assert config.open_backbone().name == (backbone if isinstance(backbone, str) else "mine@4")
        assert config.edits == "riebench"
        over_all = 1 if config.mode == "reference" else BLOCKS  # k is a block's own in strict mode alone
        for method in config.build_methods():
            k = getattr(method, "k", None)
            if isinstance(method, Neurons):
                assert 5_000 <= over_all * k <= 80_000 and k <= NEURONS * BLOCKS / over_all / 2
            elif k is not None:
                assert 80 <= k <= over_all * k <= 640 <= FEATURES / 2


@pytest.mark.parametrize(
    ("overrides", "seeds", "results", "subsets"), [({}, 2, 35, 15), ({"backbone": SDXL}, 3, 43, 15)]
)
def test_quickstart_asks_for_all_categories_and_every_subset_of_the_blocks(overrides, seeds, results, subsets):
    """SDXL's, on which a method costs little beside the images that all share, has more methods and strengths."""
    config = read_config("quickstart", overrides)
    assert config.edits_per_category == 12 and len(config.seeds) == seeds and not config.categories
    variants = plan_variants(config.build_methods(), config.subsets_of, config.open_backbone().blocks)
    counted = [(v.method.name, v.method.strength, v.blocks) for v in variants]
    assert len(set(counted)) == len(counted) == results
    assert {sum(name == method and strength == 1 for name, strength, _ in counted) for method in config.subsets_of} == {
        subsets
    }


def test_sdxls_leaderboard_and_full_are_quickstart_on_every_edit():
    quick, board, full = (read_config(name, {"backbone": SDXL}) for name in ("quickstart", "leaderboard", "full"))
    assert board.edits_per_category == full.edits_per_category == 0 and board.seeds == full.seeds == quick.seeds
    assert set(quick.build_methods()) < set(board.build_methods())
    windows = read_config("windows", {"backbone": SDXL}).build_methods()
    assert [method.window for method in windows if isinstance(method, SAE)] == ["all", "first", "1,2", "last"]


def test_reference_is_the_published_sweep():
    config = read_config("reference")  # of one kind alone, so that no backbone need be named
    assert (config.backbone, config.mode, config.seeds, config.edits) == (SDXL, "reference", (42,), "riebench")
    methods = config.build_methods()
    saes = {(m.k, m.strength) for m in methods if type(m) is SAE}
    assert saes == {(k, strength) for k in (80, 160, 320, 640) for strength in (1, 2)}
    neurons = {(m.k, m.strength, m.aggregation) for m in methods if type(m) is Neurons}
    of_neurons = (5_000, 10_000, 20_000, 40_000, 80_000)
    assert neurons == {(k, m, how) for k in of_neurons for m in (1, 2) for how in ("first", "mean")}
    assert {m.strength for m in methods if m.name == "dense"} == {0.25, 0.5, 1, 2}
    assert len({(m.name, m.strength) for m in methods}) == len(methods) == 2 + 8 + 4 + 20
    assert read_config("reference", {"backbone": "sdxl-turbo@1"}).backbone == "sdxl-turbo@1"


def test_a_run_that_a_kind_has_not_is_an_error_that_names_those_it_has():
    with pytest.raises(UserError, match="judged as tinyworld -> use full, leaderboard, quickstart, windows or a YAML"):
        read_config("reference", {"backbone": "tinyworld-turbo@1"})
    with pytest.raises(UserError, match="no run 'refrence'; did you mean 'reference'"):
        read_config("refrence", {"backbone": SDXL})


def test_what_a_run_of_ones_own_leaves_out_suits_its_backbone(tmp_path):
    names = ["sae", "random", "other-seed", "mismatched", "pca", "neurons", "text-selected"]
    path = tmp_path / "mine.yaml"
    path.write_text(f"backbone: {SDXL}\nmethods: [noop, {', '.join(names)}]\n")
    config = read_config(str(path))
    assert config.edits == "riebench"
    ks = {method.name: method.k for method in config.build_methods()[1:]}
    assert ks == {**dict.fromkeys(names[:5], 160), "neurons": 5000, "text-selected": 80}
    given = build_config({"backbone": LIKE, "edits": "tinyworld", "methods": ["noop", {"name": "sae", "k": 3}]}, "here")
    assert given.edits == "tinyworld" and given.build_methods()[1].k == 3


def test_an_edit_takes_what_suits_its_backbone_too(monkeypatch):
    built = []

    def stop(method, *_):
        built.append(method)
        raise UserError("enough")

    monkeypatch.setattr("riebench.api.missing_need", stop)
    for words in ({"backbone": SDXL}, {}, {"backbone": SDXL, "k": 3}):
        with pytest.raises(UserError, match="enough"):
            riebench.edit("a cat", "a dog", device="cpu", **words)
    assert built == [SAE(k=160), SAE(k=32), SAE(k=3)]


def test_the_runs_are_listed_as_one_asks_for_them(capsys):
    assert main(["ls", "runs"]) == 0
    rows = [line.split("  ")[0] for line in capsys.readouterr().out.splitlines()]
    assert len(rows) == len(set(rows)) == 9
    for row in rows:
        name, *rest = row.split()
        config = read_config(name, {"backbone": rest[1]} if rest else {})
        assert config.backbone.startswith("sdxl" if rest or name == "reference" else "tinyworld")
