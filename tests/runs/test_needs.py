"""What methods cannot do without: a run goes without them and says so, and the remedy that it names works."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest

import riebench
from baselines.sae import SAE
from baselines.text_selected import TextSelected
from riebench.cli import main
from riebench.core.errors import UserError
from riebench.generation.interventions import Intervention
from riebench.runs.config import RunConfig, build_config
from riebench.runs.needs import index_remedy, leave_out, missing_need
from riebench.runs.run import run

#: Shipped SAEs without a shipped text index.
OTHER = {
    "dictionary": "topk-k8-x4",
    "methods": ["noop", "sae", "text-selected"],
    "edits_per_category": 1,
    "categories": ["change_colour"],
    "seeds": [42],
    "resamples": 20,
    "blocks": ["up.0.1"],
}


@pytest.fixture(autouse=True)
def no_index_but_the_shipped(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def asked(**words):
    config = build_config(OTHER | words, "here")
    return config, config.open_backbone(), config.setup("float32")


def test_only_a_method_that_lacks_something_is_left_out():
    config, *where = asked()
    methods = config.build_methods()
    kept, left_out = leave_out(methods, *where)
    assert kept == methods[:2] and [one.method for one in left_out] == ["text-selected"]
    assert re.search("no text index for the dictionary .* -> run `riebench index-text --backbone", left_out[0].why)
    assert leave_out(methods, *asked(dictionary="")[1:]) == (methods, [])


def test_a_method_that_the_run_is_about_is_not_left_out():
    config, *where = asked()
    noop, sae, text = config.build_methods()
    for methods, wanted in (([noop, text], ()), ([noop, sae, text], ("text-selected",)), ([text], ())):
        with pytest.raises(UserError, match="no text index"):
            leave_out(methods, *where, wanted)
    assert leave_out([noop], *where) == ([noop], [])


def test_missing_dictionaries_are_another_error(tmp_path):
    assert missing_need(TextSelected(), *asked(dictionaries=str(tmp_path))[1:]) is None


def test_an_unknown_need_is_refused():
    @dataclass(frozen=True)
    class Mine:
        name: str = "mine"
        strength: float = 1.0
        sites: ClassVar[str] = "block"
        needs: ClassVar[tuple[str, ...]] = ("luck",)

        def plan(self, case):
            return Intervention()

    with pytest.raises(UserError, match="'mine' needs 'luck' -> needs are out of text index"):
        leave_out([SAE(), Mine()], *asked()[1:])


@pytest.mark.parametrize(
    ("words", "command"),
    [
        ({"backbone": "sdxl-turbo@4"}, "riebench index-text --backbone sdxl-turbo@4"),
        ({"backbone": {"name": "mine@4", "like": "sdxl-turbo@4", "folder": "/m"}}, "--backbone sdxl-turbo@1`"),
        ({"dictionaries": "/my saes", "site": "stream"}, "@1 --dictionaries '/my saes' --site stream`"),
        ({"blocks": ("down.1.0",), "dictionary": "mine"}, "@1 --blocks down.1.0 --dictionary mine`"),
        (
            {"backbone": {"name": "mine@4", "steps": 4, "guidance": 0, "folder": "/m"}, "dictionaries": "/saes"},
            "index_text` with this backbone",
        ),
    ],
)
def test_the_remedy_names_what_the_run_is_given(words, command):
    config = RunConfig(**words)
    assert command in index_remedy(config.open_backbone(), config.setup("float32"))


def test_an_edit_by_the_method_alone_is_refused_before_anything_is_loaded(monkeypatch, capsys):
    monkeypatch.setattr("riebench.api.open_engine", lambda *_, **__: pytest.fail("something was loaded"))
    monkeypatch.setattr("riebench.runs.needs.text_index_path", lambda _: Path("none"))
    words = ["edit", "a red heart", "a blue heart", "--region", "heart", "--method", "text-selected"]
    assert main(words) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "-> run `riebench index-text --backbone tinyworld-turbo@1`" in error


@pytest.mark.slow
def test_a_run_says_what_it_left_out_and_has_it_once_its_remedy_was_followed(tmp_path, capsys):
    config, folder = asked()[0], tmp_path / "run"
    done = run(config, folder, device="cpu")
    notices = [line for line in capsys.readouterr().err.splitlines() if "left out" in line]
    assert len(notices) == 1 and notices[0].startswith("riebench: text-selected is left out: there is no text index")
    (left_out,) = done.manifest["left_out"]
    assert left_out["method"] == "text-selected" and left_out["why"] in notices[0]
    assert set(done.scores["method"]) == {"noop", "sae"}
    page = done.report.read_text()
    assert "Left out" in page and "riebench index-text --backbone tinyworld-turbo@1 --dictionary topk-k8-x4" in page

    command = shlex.split(re.search("`(.*)`", notices[0])[1])
    assert main([*command[1:], "--prompts", "6", "--device", "cpu"]) == 0
    capsys.readouterr()
    again = run(config, folder, device="cpu")
    assert "left out" not in capsys.readouterr().err and again.manifest["left_out"] == []
    assert again.manifest["made"] == 1 and set(again.scores["method"]) == {"noop", "sae", "text-selected"}
    assert "Left out" not in again.report.read_text()


@pytest.mark.slow
def test_a_run_of_the_method_alone_is_refused(tmp_path):
    config = asked(methods=["noop", "text-selected"], subsets_of="text-selected")[0]
    with pytest.raises(UserError, match="no text index .* -> run `riebench index-text"):
        run(config, tmp_path / "run", device="cpu")
    with pytest.raises(UserError, match="no text index"):  # one that is given beside the configured ones is wanted
        riebench.run(asked(methods=["noop", "sae"])[0], tmp_path / "run", device="cpu", methods=[TextSelected()])
    assert not (tmp_path / "run").exists()
