"""Where what a YAML file names is looked for: from the file, whatever the current directory is then and later."""

import dataclasses
import json
from pathlib import Path

import pytest

from riebench.backbones.own import backbone_from
from riebench.backbones.table import BACKBONES
from riebench.core.errors import UserError
from riebench.edits.checks import validate_edits
from riebench.edits.edit import load_edits
from riebench.edits.template import write_template
from riebench.runs.config import PRESETS, RunConfig, build_config, read_config
from riebench.runs.setup import Setup

YAML = """\
edits: ../sets/mine.csv
dictionaries: saes
backbone: {name: mine@1, like: tinyworld-turbo@1, folder: models/a}
methods: [noop, sae]
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with a YAML file in one sub-folder and edits in another; the current directory is elsewhere."""
    for name in ("runs", "sets", "elsewhere"):
        (tmp_path / name).mkdir()
    write_template(tmp_path / "sets" / "mine.csv")
    (tmp_path / "runs" / "mine.yaml").write_text(YAML)
    monkeypatch.chdir(tmp_path / "elsewhere")
    return tmp_path


@pytest.mark.parametrize("name", ["../runs/mine.yaml", "{project}/runs/mine.yaml", "../runs/../runs/mine.yaml"])
def test_paths_in_a_yaml_are_seen_from_it_and_are_absolute(project, name):
    config = read_config(name.format(project=project))
    assert config.edits == str(project / "sets" / "mine.csv") and len(load_edits(config.edits)) == 2
    assert config.dictionaries == str(project / "runs" / "saes")
    assert config.backbone["folder"] == config.open_backbone().folder == str(project / "runs" / "models" / "a")
    assert dataclasses.replace(config, seeds=(1,)).edits == config.edits


def test_paths_of_flags_and_of_python_are_seen_from_the_current_directory(project, monkeypatch):
    flags = {"edits": "../sets/mine.csv", "dictionaries": "saes"}
    for config in (read_config("../runs/mine.yaml", flags), build_config(flags, "here"), RunConfig(**flags)):
        assert config.edits == str(project / "sets" / "mine.csv")
        assert config.dictionaries == str(project / "elsewhere" / "saes")
    monkeypatch.setenv("HOME", str(project))
    assert RunConfig(edits="~/sets").edits == read_config("quickstart", {"edits": "~/sets"}).edits
    (project / "runs" / "home.yaml").write_text("{edits: ~/sets, dictionaries: ~/saes}")
    config = read_config(str(project / "runs" / "home.yaml"))
    assert (config.edits, config.dictionaries) == (str(project / "sets"), str(project / "saes"))


def test_absolute_paths_and_names_stay_as_they_are(project):
    (project / "runs" / "a.yaml").write_text(f"{{edits: {project}/sets, dictionaries: /saes}}")
    config = read_config("../runs/a.yaml")
    assert (config.edits, config.dictionaries) == (f"{project}/sets", "/saes")
    (project / "runs" / "b.yaml").write_text("edits: tinyworld")
    assert read_config("../runs/b.yaml").edits == "tinyworld" and RunConfig().dictionaries == ""


def test_ones_own_set_of_a_shipped_name_is_meant_by_files_and_flags_and_not_by_presets(project, capsys):
    (project / "runs" / "tinyworld").mkdir()
    write_template(project / "runs" / "tinyworld" / "a.yaml")
    (project / "runs" / "b.yaml").write_text("edits: tinyworld")
    assert read_config("../runs/b.yaml").edits == str(project / "runs" / "tinyworld")
    assert "not the shipped set" in capsys.readouterr().err
    (project / "runs" / "tinyworld").rename(project / "elsewhere" / "tinyworld")
    assert read_config("../runs/b.yaml").edits == "tinyworld"
    assert read_config("quickstart", {"edits": "tinyworld"}).edits == str(project / "elsewhere" / "tinyworld")
    capsys.readouterr()
    assert RunConfig().edits == read_config("quickstart").edits == "tinyworld"
    assert read_config(str(PRESETS / "tinyworld" / "quickstart.yaml")).edits == "tinyworld"
    assert not capsys.readouterr().err


def test_a_name_that_is_nowhere_is_named_with_the_nearest(project):
    config = read_config("quickstart", {"edits": "tinywrld"})
    with pytest.raises(UserError, match=f"no edit set '{Path.cwd()}/tinywrld'; did you mean 'tinyworld'"):
        load_edits(config.edits)


@pytest.mark.parametrize("label", ["a\\nb", "a\\tb", "\\x1b[2Ja", "\\u202ea", "a\\r"])
def test_a_label_is_a_line_of_text(project, label):
    (project / "runs" / "c.yaml").write_text(f'methods: [noop, {{name: sae, label: "{label}"}}]\nsubsets_of: []\n')
    with pytest.raises(UserError, match="the label .* is no line of text"):
        read_config("../runs/c.yaml")
    (project / "runs" / "c.yaml").write_text(
        "methods: [noop, {name: sae, label: \"=cmd|' /C x'!A0\"}]\nsubsets_of: []\n"
    )
    assert read_config("../runs/c.yaml").methods[1].label == "=cmd|' /C x'!A0"


def test_a_home_that_is_not_known_is_a_line_wherever_a_path_may_begin_with_one(tmp_path):
    nowhere = "~nobody-of-that-name/x"
    path = tmp_path / "a.jsonl"
    edit = {"id": "a", "category": "change_object", "original_prompt": "a heart", "edited_prompt": "a star"}
    path.write_text(json.dumps(edit | {"original_region": f"mask:{nowhere}.png", "edited_region": "star"}))
    (problem,) = validate_edits(path)
    assert (problem.id, problem.line) == ("a", 1) and "begins at a home that is not known" in problem.what
    mine = {"name": "mine@1", "like": "tinyworld-turbo@1", "folder": nowhere}
    for named in (
        lambda: load_edits(path),
        lambda: backbone_from(mine, "here"),
        lambda: Setup(dictionaries=nowhere).dictionary_of(BACKBONES.get("tinyworld-turbo@1"), "mid.0"),
    ):
        with pytest.raises(UserError, match="begins at a home that is not known -> .*write the whole path"):
            named()
