"""Methods and metrics of one's own: from a file on the command line, and beside names in Python."""

from __future__ import annotations

import json

import pytest

import riebench
from riebench import api
from riebench.analysis import Run, read_scores
from riebench.cli import main
from riebench.core import plugins
from riebench.runs.config import MethodConfig

PLUGIN = """
from dataclasses import dataclass
from typing import ClassVar

import riebench


@riebench.METHODS.register("brighter", summary="adds the same to every cell")
@dataclass(frozen=True)
class Brighter:
    by: float = 1.0
    strength: float = 1.0
    name: str = "brighter"
    sites: ClassVar[str] = "block"

    def plan(self, case):
        added = {}
        for site, value in case.edited.items():
            cells = case.edited_cells[site.block][:, None].float().expand(value.shape)
            added[site] = self.by * self.strength * value.abs().mean() * cells
        return riebench.Intervention(added)


@riebench.METRICS.register("redness", summary="mean red")
class Redness:
    name, higher_is_better, bounds, summary = "redness", None, (0.0, 1.0), "mean red"

    def __init__(self, models):
        pass

    def score(self, batch):
        return batch.intervened[:, 0].double().mean(dim=(1, 2)).numpy()
"""
RUN = """
backbone: tinyworld-turbo@1
categories: [change_object]
edits_per_category: 1
seeds: [42]
methods: [noop, {name: brighter, by: 2}]
subsets_of: [brighter]
resamples: 20
"""
HEART = "flat poster of a standing red plain heart in the sky"


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    monkeypatch.setattr(plugins, "_loaded", {})
    path = tmp_path / "my_things.py"
    path.write_text(PLUGIN)
    return str(path)


@pytest.mark.slow
def test_a_file_on_the_command_line_brings_methods_and_metrics(plugin, tmp_path, capsys):
    (tmp_path / "mine.yaml").write_text(RUN)
    folder = str(tmp_path / "run")
    assert main(["run", str(tmp_path / "mine.yaml"), "--out", folder]) == 2
    assert "no method 'brighter'" in capsys.readouterr().err
    assert main(["run", str(tmp_path / "mine.yaml"), "--out", folder, "--plugin", plugin]) == 0
    scores = Run.open(folder).scores
    assert len(scores[scores.method == "brighter"]) == 15 and (scores.status == "ok").all()
    assert main(["score", folder, "--metrics", "redness", "--plugin", plugin]) == 0
    found = read_scores(tmp_path / "run" / "scores.parquet")
    assert found.redness.between(0, 1).all() and found.redness.nunique() > 1
    assert main(["compare", folder, "--against", "noop", "--metrics", "redness", "--plugin", plugin]) == 0
    words = ["edit", HEART, HEART.replace("heart", "star"), "--region", "heart", "--edited-region", "star"]
    words += ["--method", "brighter", "--set", "by=3", "--out", str(tmp_path / "it.png")]
    assert main([*words, "--plugin", plugin]) == 0 and (tmp_path / "it.png").is_file()


@pytest.mark.slow
def test_an_edit_is_of_its_category(tmp_path, capsys):
    """To add something, the edited picture's region counts on both."""
    crown = HEART.replace("heart", "heart wearing a crown")
    words = ["edit", HEART, crown, "--region", "crown", "--method", "dense", "--out", str(tmp_path / "it.png")]
    assert main(words) == 2 and "no region found" in capsys.readouterr().err
    assert main([*words, "--category", "add_object"]) == 0
    assert main([*words, "--category", "add_objct"]) == 2
    assert "did you mean 'add_object'" in capsys.readouterr().err


@pytest.fixture
def asked(monkeypatch):
    """What `riebench.run` asks for, without doing it."""
    calls = []
    monkeypatch.setattr(api.runs, "run", lambda config, _folder, **words: calls.append((config, words["methods"])))
    return calls


class Mine:
    name, strength, sites = "mine", 1.0, "block"


def test_methods_by_name_stand_in_place_of_the_configured_ones(asked):
    mine = Mine()
    riebench.run("quickstart", methods=[mine])
    whole, own = asked.pop()
    assert own == [mine] and {"dense", "random"} <= {method.name for method in whole.methods}
    riebench.run("quickstart", methods=["noop", "sae", mine])
    config, own = asked.pop()
    assert own == [mine] and [method.name for method in config.methods] == ["noop", "sae"]
    assert config.subsets_of == ("sae",) and whole.subsets_of == ("sae", "prompt-injection")
    riebench.run("quickstart", methods=["noop", {"name": "dense", "strength": [1, 2]}, MethodConfig("pca", {"k": 3})])
    config, own = asked.pop()
    assert [(m.name, dict(m.settings)) for m in config.methods[1:]] == [
        ("dense", {"strength": 1}),
        ("dense", {"strength": 2}),
        ("pca", {"k": 3}),
    ]
    assert own == [] and config.subsets_of == ("dense",)  # the first that edits
    riebench.run({"seeds": [1]}, methods=["noop", "sae", "dense"], subsets_of=["dense"])
    assert asked.pop()[0].subsets_of == ("dense",)
    riebench.run(whole, methods=["noop", "sae"])
    assert [method.name for method in asked.pop()[0].methods] == ["noop", "sae"]
    with pytest.raises(riebench.UserError, match="did you mean 'sae'"):
        riebench.run("quickstart", methods=["noop", "saee"])
    with pytest.raises(riebench.UserError, match="no method 'noop'"):
        riebench.run("quickstart", methods=["sae", mine])


def test_features_of_every_block_are_listed_with_what_a_number_means(capsys):
    assert main(["ls", "features"]) == 0
    out = capsys.readouterr().out
    lines = {line.split()[0]: line for line in out.splitlines()[:4]}
    assert list(lines) == ["down.2.1", "mid.0", "up.0.0", "up.0.1"]
    assert all("0 to 767 of topk-k16-x8" in line and "most often" in line for line in lines.values())
    assert "--method chosen" in out
    assert main(["ls", "features", "--backbone", "sdxl-turbo@4"]) == 0  # nothing is fetched for it
    assert "0 to 5119 of released-k160-x4" in capsys.readouterr().out


def test_the_version_is_that_of_the_package(capsys):
    from importlib.metadata import version

    with pytest.raises(SystemExit) as left:
        main(["--version"])
    assert left.value.code == 0 and capsys.readouterr().out == f"riebench {version('riebench')}\n"


def test_dictionaries_that_were_trained_for_a_name_are_found_under_it(tmp_path):
    """Those of the backbone that it is like are taken where there are none of its own."""
    from riebench.backbones.own import backbone_from
    from riebench.backbones.table import BACKBONES
    from riebench.runs.setup import Setup
    from sae_models import index

    mine = backbone_from({"name": "mine@1", "like": "tinyworld-turbo@1", "folder": str(tmp_path)}, "backbone")
    shipped = index.find("tinyworld-turbo@1", "mid.0")
    assert Setup().dictionary_of(mine, "mid.0")[0] == shipped
    fields = json.loads((index.default_root() / "index.json").read_text())[0]
    for backbone, name in (("tinyworld-turbo@1", "like"), ("mine@1", "own"), ("tinyworld-turbo@4", "four")):
        entry = index.Entry(**(fields | {"backbone": backbone, "block": "mid.0", "name": name}))
        index.register(entry, root=tmp_path)
    setup = Setup(dictionaries=str(tmp_path))
    assert setup.dictionary_of(mine, "mid.0")[0].name == "own"
    assert setup.dictionary_of(BACKBONES.get("tinyworld-turbo@4"), "mid.0")[0].name == "four"
    assert setup.dictionary_of(BACKBONES.get("tinyworld-base@25"), "mid.0")[0].name == "like"
    with pytest.raises(riebench.UserError, match="no dictionary is known for tinyworld-turbo@1 up.0.1"):
        setup.dictionary_of(mine, "up.0.1")
