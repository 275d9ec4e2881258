"""What a run and its methods may be told: one line for all else, in YAML, in flags and in Python alike."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_origin

import pytest

import riebench
from baselines import METHODS
from riebench.api import edit
from riebench.cli import main
from riebench.core.errors import UserError
from riebench.core.values import Range, allowed, check_value
from riebench.core.yaml_text import load_yaml
from riebench.edits.edit import Edit
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
    ("sae", "statistic: maxx", "statistic holds 'maxx'; did you mean 'max'", "mean, quantile or max"),
    ("sae", "statistic: [mean]", "statistic holds ['mean']", "mean, quantile or max"),
    ("dense", "mode: dynamic", "mode holds 'dynamic'", "static, adaptive or replace"),
    ("pca", "placement: middle", "placement holds 'middle'", "edited or original"),
    ("neurons", "branch: condition", "branch holds 'condition'; did you mean 'cond'", "cond, uncond or both"),
    ("region-means", "branch: none", "branch holds 'none'", "cond, uncond or both"),
    ("sae", "budget: nrom", "budget holds 'nrom'; did you mean 'norm'", "features or norm"),
    ("sae", "budget: true", "budget holds True", "features or norm"),
    ("sae", "k: 010", "k holds '010'", "a whole number of at least 1"),
    ("sae", "k: 1:30", "k holds '1:30'", "a whole number of at least 1"),
    ("sae", "k: 1_000", "k holds '1_000'", "a whole number of at least 1"),
    ("noop", "strength: high", "strength holds 'high'", "a number"),
    ("oracle-prompt", "strength: .inf", "strength holds inf", "a number"),
    ("chosen", "on: 3", "on holds 3", "text"),
    ("chosen", "on: 'mid.0:x'", "'mid.0:x' names no features", "block:number"),
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


@pytest.mark.parametrize(("method", "setting", "said", "remedy"), REFUSED_SETTINGS)
def test_python_and_set_refuse_a_setting_in_the_words_of_yaml(method, setting, said, remedy, capsys):
    ((key, value),) = load_yaml(setting).items()
    with pytest.raises(UserError) as of_yaml:
        for one in build_config({"methods": ["noop", {"name": method, key: value}], "subsets_of": []}, "x").methods[1:]:
            one.build()
    if "no setting" not in said and not isinstance(value, list):
        with pytest.raises(UserError) as of_python:
            METHODS.get(method)(**{key: value})
        assert str(of_python.value) == str(of_yaml.value)
    text = setting.partition(":")[2].strip()
    kind = (setting_kinds(method) or {}).get(key, Any)
    takes_text = kind is str or get_origin(kind) is Literal  # and what is given after --set is text then
    if "[" not in text and "'" not in text and not (takes_text and not isinstance(value, str)):
        assert main(["edit", "a red heart", "a blue heart", "--method", method, "--set", f"{key}={text}"]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line == f"riebench: {of_yaml.value}"


@pytest.mark.parametrize(
    ("method", "settings", "said"),
    [
        ("sae", {"k": 385}, "method 'sae': k is 385, and down.2.1 has 768 features -> use k of at most 384"),
        ("random", {"k": 10**12}, "k is 1000000000000, and down.2.1 has 768 features"),
        ("mismatched", {"k": 1537, "pool": "all"}, "k is 1537, and all blocks together has 3072 features"),
        ("text-selected", {"k": 385}, "k is 385, and down.2.1 has 768 features"),
        ("sae", {"window": "lastt"}, "'lastt' is no window of steps"),
        ("dense", {"window": "first 2"}, "has 2 of 1 steps"),
        ("region-means", {"window": "0,1"}, "goes beyond the 1 steps"),
        ("pca", {"branch": "uncond"}, "tinyworld-turbo@1 has no branch 'uncond'"),
        ("chosen", {}, "no feature was chosen"),
        ("chosen", {"on": "mid.0:768"}, "mid.0 has no feature 768 -> use numbers from 0 to 767"),
        ("chosen", {"off": "mid.1:3"}, "unknown block 'mid.1'; did you mean 'mid.0'"),
        ("chosen", {"on": "mid.0:-1"}, "mid.0 has no feature -1"),
    ],
)
def test_what_a_backbone_and_its_dictionaries_have_not_is_refused_before_they_are_loaded(
    method, settings, said, monkeypatch, tmp_path
):
    def loads(*_words, **_settings):
        raise AssertionError("something is loaded")

    monkeypatch.setattr("riebench.api.open_engine", loads)
    monkeypatch.setattr("riebench.runs.run.plan", loads)
    built = METHODS.get(method)(**settings)
    for ask in (
        lambda: edit("a red heart", "a blue heart", method=method, device="cpu", **settings),
        lambda: edit("a red heart", "a blue heart", method=built, device="cpu"),
        lambda: riebench.run({"methods": ["noop", {"name": method, **settings}], "subsets_of": []}, tmp_path / "x"),
        lambda: riebench.run({"methods": ["noop"], "subsets_of": []}, tmp_path / "x", methods=[built]),
    ):
        with pytest.raises(UserError) as raised:
            ask()
        assert str(raised.value).startswith(f"method {method!r}: ") and said in str(raised.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("method", "most"), [("pca", 48), ("neurons", None)])
def test_more_channels_or_neurons_than_there_are_are_refused_before_anything_is_generated(method, most, engine):
    edits = [(Edit("e", "change_colour", "a red heart", "a blue heart", "heart", "heart"), 42)]
    before = engine.sampler.forwards
    with pytest.raises(UserError, match=f"method {method!r}: k is 100000, and .* use k of at most") as raised:
        engine.references(edits, [METHODS.get(method)(k=100_000)])
    assert engine.sampler.forwards == before
    allowed = int(str(raised.value).split()[-1])
    widths = {site.block: engine.sampler.blocks.width(site) for site in engine.generation._sites("update")}
    assert method != "pca" or allowed == widths["down.2.1"] // 2


@pytest.mark.parametrize("seed", [-1, 2**63, 1.5, True, "42", None])
def test_a_seed_that_is_none_is_refused_in_python_too(seed):
    for ask in (lambda: edit("a red heart", "a blue heart", seed=seed), lambda: riebench.generate("a", seed=seed)):
        with pytest.raises(UserError, match="seed holds .* from 0 to"):
            ask()


def test_what_is_wrong_is_told_in_a_line_however_large_it_is(tmp_path):
    path = tmp_path / "mine.yaml"
    nested = "a: &a0 [x]\n" + "".join(f"b{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12))
    for text in (
        f"seeds: [{'9' * 5000}]",
        f"edits: [{'x, ' * 1000}]",
        f"split: {{a: {'[' * 300}{']' * 300}}}",
        f"metrics: {'[' * 500}",
        f"metrics: {'x' * 10**4}: 3",
        nested.replace("b11:", "methods:").replace("a: &a0", "metrics: &a0"),
    ):
        path.write_text(text)
        with pytest.raises(UserError) as raised:
            read_config(str(path))
        assert len(str(raised.value)) < 3000, text[:30]
    with pytest.raises(UserError, match="seeds holds a int too large to be written"):
        RunConfig(seeds=[10**5000])


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
    assert MethodConfig("mine", {"k": -3, "steps": "none", "anything": [1]}).build() == Mine(-3, "none", anything=[1])
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


def test_what_is_allowed_is_said_in_words():
    assert allowed(tuple[int, ...] | str) == "a list, each of it a whole number, or text"
    assert allowed(str | Mapping[str, int] | None) == "text, or keys with their values, or nothing"
    assert check_value("a", {"b": 1}, str | Mapping[str, int]) == {"b": 1}
    assert check_value("a", None, int | None) is None
