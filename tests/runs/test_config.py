"""What a run and its methods may be told: one line for all else, in YAML, in flags and in Python alike."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import pytest

import riebench
from baselines import METHODS
from riebench.api import edit
from riebench.cli import main
from riebench.core.errors import UserError
from riebench.core.values import Range, allowed, check_value
from riebench.runs.config import MethodConfig, RunConfig, build_config, read_config, setting_kinds

REFUSED_SETTINGS = [
    ("sae", "k: 0", "k holds 0", "a whole number of at least 1"),
    ("pca", "k: -1", "k holds -1", "a whole number of at least 1"),
    ("neurons", "k: 1.5", "k holds 1.5", "a whole number of at least 1"),
    ("random", "k: many", "k holds 'many'", "a whole number of at least 1"),
    ("text-selected", "k: true", "k holds True", "a whole number of at least 1"),
    ("mismatched", "k:", "k holds None", "a whole number of at least 1"),
    ("sae", "k: '32'", "k holds '32'", "a whole number of at least 1"),
    ("sae", "pool: blok", "pool holds 'blok'; did you mean 'block'", "block or all"),
    ("text-selected", "pool: [all]", "pool holds ['all']", "block or all"),
    ("other-seed", "aggregation: lastt", "aggregation holds 'lastt'", "first or mean"),
    ("pca", "aggregation: 1", "aggregation holds 1", "first or mean"),
    ("dense", "strength: strong", "strength holds 'strong'", "a number"),
    ("dense", "strength: 1e-1e", "strength holds '1e-1e'", "a number"),
    ("dense", "strength: .nan", "strength holds nan", "a number"),
    ("region-means", "strength: -.inf", "strength holds -inf", "a number"),
    ("region-means", "strength: 'nan'", "strength holds 'nan'", "a number"),
    ("dense", "strength: true", "strength holds True", "a number"),
    ("dense", "strength: [1, high]", "strength holds 'high'", "a number"),
    ("dense", "strength: [[1]]", "strength holds [1]", "a number"),
    ("dense", "strength:", "strength holds None", "a number"),
    ("sae", "keep_spatial: 'no'", "keep_spatial holds 'no'", "true or false"),
    ("sae", "keep_spatial: 0", "keep_spatial holds 0", "true or false"),
    ("sae", "only_add: [true]", "only_add holds [True]", "true or false"),
    ("sae", "window: 3", "window holds 3", "text"),
    ("sae", "statistic: maxx", "unknown statistic 'maxx'; did you mean 'max'", "mean, quantile or max"),
    ("sae", "sites: neurons", "no setting 'sites'", "strength"),
    ("other-seed", "select_on: edit", "no setting 'select_on'", "strength"),
    ("noop", "uses_sae: true", "no setting 'uses_sae'", "strength"),
]


@pytest.mark.parametrize(("method", "setting", "said", "remedy"), REFUSED_SETTINGS)
def test_a_value_that_a_setting_cannot_have_is_one_line_before_anything_is_made(
    method, setting, said, remedy, tmp_path, capsys
):
    path, out = tmp_path / "mine.yaml", tmp_path / "out"
    path.write_text(f"methods:\n  - noop\n  - name: {method}\n    {setting}\nsubsets_of: []\n")
    assert main(["run", str(path), "--out", str(out)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("riebench: ") and said in line and remedy in line.partition(" -> ")[2]
    assert not out.exists()


REFUSED_VALUES = [
    ("blocks: []", "blocks [] are empty or repeated", "down.2.1"),
    ("blocks: [mid.0, up.0.1, mid.0]", "are empty or repeated", "down.2.1"),
    ("blocks: mid.0", "blocks is 'mid.0', not a list", "blocks: [..., ...]"),
    ("seeds: [-1]", "seeds holds -1", f"from 0 to {2**63 - 1}"),
    (f"seeds: [42, {2**64}]", f"seeds holds {2**64}", f"from 0 to {2**63 - 1}"),
    ("seeds: [1.0]", "seeds holds 1.0", "a whole number"),
    ("seeds: [true]", "seeds holds True", "a whole number"),
    ("resamples: 0", "resamples holds 0", "from 1 to 1000000"),
    ("resamples: 1000001", "resamples holds 1000001", "from 1 to 1000000"),
    ("resamples: 1e4", "resamples holds '1e4'", "from 1 to 1000000"),
    ("batch_size: 4097", "batch_size holds 4097", "from 0 to 4096"),
    ("edits_per_category: -2", "edits_per_category holds -2", "of at least 0"),
    ("edits: [a]", "edits holds ['a']", "text"),
    ("backbone: 3", "backbone holds 3", "text, or keys with their values"),
    ("subsets_of: 3", "subsets_of holds 3", "a list"),
    ("methods: sae", "methods is 'sae', not a list", "methods: [..., ...]"),
    ("methods: [noop, {name: sae, label: 3}]", "the label of 'sae' holds 3", "text"),
    ("methods: [noop, {name: sae, strength: []}]", "the strength of 'sae' is []", "a number"),
    ("methods: [noop, {name: [sae]}]", "a method is {'name': ['sae']}", "- name: sae"),
    ("split: dev\nsplit: test", "'split' stands twice", "mend that line"),
    ("methods:\n  - name: noop\n  - {name: sae, k: 3, k: 4}", "'k' stands twice", "mend that line"),
    ("? [a]\n: 3", "a key is no text", "mend that line"),
    ("edits: 2020-13-45", "is not YAML", "mend that line"),
    ("on: 3", "unknown key 'on'", "the keys are"),
]


@pytest.mark.parametrize(("text", "said", "remedy"), REFUSED_VALUES)
def test_a_value_that_a_run_cannot_have_names_the_file_the_value_and_what_is_allowed(text, said, remedy, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as raised:
        read_config(str(path))
    message, _, what = str(raised.value).partition(" -> ")
    assert said in message and remedy in what
    assert "empty or repeated" in message or str(path) in message


@pytest.mark.parametrize(
    ("name", "value"),
    [("seeds", [2**64]), ("batch_size", 4097), ("blocks", []), ("resamples", 0), ("dtype", 16), ("methods", [3])],
)
def test_python_and_flags_are_refused_what_yaml_is(name, value, capsys):
    errors = []
    for make in (
        lambda: RunConfig(**{name: value}),
        lambda: dataclasses.replace(RunConfig(), **{name: value}),
        lambda: read_config("quickstart", {name: value}),
        lambda: build_config({name: value}, "here"),
    ):
        with pytest.raises(UserError) as raised:
            make()
        errors.append(str(raised.value).removeprefix("here: "))
    assert len(set(errors)) == 1, "no file is blamed for what it does not hold"
    if name == "batch_size":
        assert main(["run", "quickstart", "--batch-size", str(value)]) == 2
        assert capsys.readouterr().err.strip() == f"riebench: {errors[0].replace(name, '--batch-size')}"


def test_values_are_kept_as_their_fields_have_them():
    config = RunConfig(seeds=[1, 2], blocks=["mid.0"], subsets_of="sae", methods=["noop", {"name": "sae", "k": 3}])
    assert (config.seeds, config.blocks, config.subsets_of) == ((1, 2), ("mid.0",), ("sae",))
    assert config.methods == (MethodConfig("noop"), MethodConfig("sae", {"k": 3}))
    assert config == build_config({**vars(config), "seeds": [1, 2]}, "here")
    assert RunConfig(seeds=[0, 2**63 - 1], batch_size=4096, resamples=1_000_000).batch_size == 4096


@pytest.mark.parametrize(
    ("written", "meant"), [("1e-1", 0.1), ("2", 2.0), ("'0.5'", 0.5), ("1E+1", 10.0), ("-1", -1.0)]
)
def test_a_strength_may_be_any_number_however_it_is_written(written, meant, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(f"methods: [noop, {{name: sae}}, {{name: dense, strength: [{written}]}}]")
    strength = read_config(str(path)).methods[-1].build().strength
    assert strength == meant and type(strength) is float
    with pytest.raises(UserError, match="k holds '2'"):
        MethodConfig("sae", {"k": "2"}).build()


def test_keys_of_yaml_are_text_and_may_be_merged(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(
        "methods:\n  - noop\n  - &sae {name: sae, k: 3}\n  - {<<: *sae, label: wide, k: 5}\n"
        "  - name: chosen\n    on: 'up.0.1:12'\n    off: 'mid.0:3'\n"
    )
    built = [method.build() for method in read_config(str(path)).methods]
    assert [(method.name, getattr(method, "k", None)) for method in built[1:3]] == [("sae", 3), ("wide", 5)]
    assert (built[3].on, built[3].off) == ("up.0.1:12", "mid.0:3")


def test_reference_mode_brings_its_seed_wherever_it_is_asked_for():
    assert read_config("quickstart", {"mode": "reference"}).seeds == (42,)
    assert build_config({"mode": "reference"}, "here").seeds == (42,)
    with pytest.raises(UserError, match="has the seed 42 alone"):
        read_config("quickstart", {"mode": "reference", "seeds": [1]})


@pytest.mark.parametrize("name", METHODS.names())
def test_the_defaults_of_every_method_are_allowed(name):
    method, kinds = METHODS.get(name)(), setting_kinds(name)
    assert not {"name", "sites", "select_on"} & kinds.keys()
    for key, kind in kinds.items():
        assert kind is not Any
        assert check_value(key, getattr(method, key), kind) == getattr(method, key)


def test_a_setting_of_an_edit_is_held_against_the_method_too():
    for settings in ({"k": 0}, {"keep_spatial": "no"}, {"name": "mine"}, {"sites": ""}):
        (key,) = settings
        with pytest.raises(UserError, match=key):
            edit("a red heart", "a blue heart", device="cpu", **settings)


def test_methods_of_others_are_held_to_their_annotations_and_no_further():
    @dataclasses.dataclass(frozen=True)
    class Mine:
        k: int = 0
        steps: str = "every"
        ways: Literal["up", "down"] = "up"
        part: Annotated[float, Range(0, 1)] = 0.5
        anything: object = None
        name: str = "mine"
        strength: float = 1.0
        sites: str = ""

    METHODS.add("mine", Mine)
    METHODS.add("made", lambda k=1: k)
    try:
        assert MethodConfig("mine", {"k": -3, "steps": "none", "anything": [1]}).build() == Mine(
            -3, "none", anything=[1]
        )
        assert MethodConfig("made", {"k": "two"}).build() == "two"
        assert setting_kinds("made") is None
        for settings, said in (
            ({"ways": "dwn"}, "method 'mine': ways holds 'dwn'; did you mean 'down'? -> give up or down"),
            ({"part": 1.5}, "method 'mine': part holds 1.5 -> give a number from 0 to 1"),
            ({"k": "1"}, "method 'mine': k holds '1' -> give a whole number"),
        ):
            with pytest.raises(UserError) as raised:
                MethodConfig("mine", settings).build()
            assert str(raised.value) == said
        with pytest.raises(UserError, match="check its settings"):
            MethodConfig("made", {"l": 3}).build()
    finally:
        for name in ("mine", "made"):
            del riebench.METHODS._entries[name]


def test_what_is_allowed_is_said_in_words():
    assert allowed(tuple[int, ...] | str) == "a list, each of it a whole number, or text"
    assert allowed(str | Mapping[str, int] | None) == "text, or keys with their values, or nothing"
    assert check_value("a", {"b": 1}, str | Mapping[str, int]) == {"b": 1}
    assert check_value("a", None, int | None) is None
