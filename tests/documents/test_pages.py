"""The commands and the Python of the README and of docs/ work as they stand there.

Those for SDXL are run in `tests/rehearsal`. Here the embedded world is made small: its edit set has few edits, its
shipped runs few methods; and words are put behind commands that would train for half an hour.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import shutil

import pytest
import yaml
from documents.pages import PAGES, USAGE, command_lines, fences, inline_commands, words_of

from riebench.cli import VERBS, main
from riebench.cli.flags import _fields, _flag
from riebench.cli.run_file import page as run_file_page
from riebench.core import files
from riebench.edits.edit import load_edits
from riebench.edits.sets import write_set_file
from riebench.runs import config
from riebench.runs.config import RunConfig, build_config

NAMES = {verb.name: verb for verb in VERBS}
#: Pages whose commands run on tinyworld, and what comes before them in the same folder.
RUN = {
    "README.md": (("run", "quickstart", "--out", "runs/mine"), ("run", "windows")),
    "docs/custom-edits.md": (),
    "docs/dictionaries.md": (),
    "docs/leaderboard.md": (),
}
#: Words of a command -> what makes it small.
SMALL = {
    ("train", "--store"): None,  # on a store of SDXL's updates: `tests/rehearsal`
    ("train",): ("--k", "16", "--width", "8", "--count", "64", "--steps", "4", "--batch-size", "64"),
}
#: What methods the small runs have.
METHODS = ("noop", "oracle-prompt", "sae", "random")


def flags_of(verb) -> set[str]:
    kinds = [(verb.words, ()), *([verb.overrides] if verb.overrides else [])]
    return {f"--{_flag(one)}" for owner, only in kinds for one, _, _ in _fields(owner, only)}


@pytest.mark.parametrize("page", PAGES)
def test_every_command_that_a_page_names_is_one_with_these_flags(page):
    for line in [*(line for _, line in command_lines(page)), *inline_commands(page)]:
        words = re.findall(r"[^\s\[\]|]+", line)[1:]
        if words and words[0] in ("--help", "--version"):
            continue
        name = next((n for n in (" ".join(words[:2]), words[0]) if n in NAMES), None)
        assert name or words[0] == "tinyworld", f"{page}: {line}"
        unknown = {word for word in words if re.fullmatch(r"--[a-z][a-z-]*", word)} - flags_of(NAMES[name])
        assert not unknown, f"{page}: {line}: {unknown}"


@pytest.fixture(scope="module")
def small_world(tmp_path_factory):
    """The embedded world with three edits, and shipped runs of few methods."""
    folder = tmp_path_factory.mktemp("world")
    data, presets = folder / "data", folder / "presets"
    sets = data / "edits" / "tinyworld"
    sets.mkdir(parents=True)
    for other in files.data_folder().iterdir():
        if other.name != "edits":
            (data / other.name).symlink_to(other)
    (data / "edits" / "riebench").symlink_to(files.data_folder() / "edits" / "riebench")
    edits = load_edits("tinyworld")
    colours = [edit for edit in edits if edit.category == "change_colour"]
    few = [colours[0], next(edit for edit in colours if edit.tags["to"] == "blue"), edits[0]]
    for edit in few:
        with (sets / f"{edit.category}.jsonl").open("a") as file:
            file.write(json.dumps(vars(edit)) + "\n")
    write_set_file(sets, few, name="tinyworld", version="few", licence="x", source="tinyworld", checked="any set")
    shutil.copytree(config.PRESETS, presets)
    for path in presets.glob("tinyworld/*.yaml"):
        asked = yaml.safe_load(path.read_text())
        methods = [one if isinstance(one, dict) else {"name": one} for one in asked["methods"]]
        wanted = {*METHODS, *asked["subsets_of"]}
        asked["methods"] = [one for one in methods if one.get("label", one["name"]) in wanted]
        asked |= {"resamples": 50, "edits_per_category": 0}
        if path.stem != "leaderboard":  # whose entries have three seeds
            asked["seeds"] = [42]
        path.write_text(yaml.safe_dump(asked))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "data_folder", lambda: data)
        patch.setattr(config, "PRESETS", presets)
        yield folder


@pytest.mark.slow
@pytest.mark.parametrize("page", RUN)
def test_the_commands_of_a_page_run_in_their_order(page, small_world, tmp_path):
    lines = [
        words_of(line)
        for fence, line in command_lines(page)
        if not USAGE.search(line) and "SDXL" not in fence.heading and "sdxl" not in line
    ]
    assert lines
    for words in [*RUN[page], *lines]:
        more = next((small for key, small in SMALL.items() if set(key) <= set(words)), ())
        if more is None:
            continue
        out, err = io.StringIO(), io.StringIO()
        with contextlib.chdir(tmp_path), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = main([*words, *more])
        assert status == 0 and out.getvalue(), f"{page}: riebench {' '.join(words)}: {err.getvalue()}"


@pytest.mark.slow
@pytest.mark.parametrize("page", [name for name in PAGES if any(f.language == "python" for f in fences(name))])
def test_the_python_of_a_page_runs_as_it_stands(page, small_world, tmp_path):
    if page == "docs/dictionaries.md":
        assert main(["harvest", "--out", str(tmp_path / "store"), "--count", "16"]) == 0
    names: dict = {}
    with contextlib.chdir(tmp_path), contextlib.redirect_stdout(io.StringIO()):
        for fence in fences(page):
            if fence.language == "python":
                exec(compile("\n" * fence.line + fence.text, page, "exec"), names)
    if page == "README.md":
        assert names["result"].scores["oracle_success"] == 1, "the first example that a newcomer sees is one that works"
        assert (tmp_path / "star.png").is_file() and (tmp_path / "pushed.png").is_file()


@pytest.mark.parametrize("page", PAGES)
def test_the_yaml_and_json_of_a_page_can_be_read(page):
    for fence in fences(page):
        if fence.language == "json":
            json.loads(fence.text)
        if fence.language == "yaml":
            found = yaml.safe_load(fence.text)
            if "methods" in found:
                build_config(found, page)


def test_the_page_on_run_files_is_made_of_the_dataclasses():
    text = PAGES["docs/run-file.md"].read_text()
    assert text == run_file_page(), "python -m riebench.cli.run_file > docs/run-file.md"
    assert all(f"| `{name}` |" in text for name in RunConfig.__dataclass_fields__)
