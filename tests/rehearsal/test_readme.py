"""The README's commands for SDXL, each run as it stands there from an empty cache of the Hub to the report.

They run in their order, in one folder, on small random models. Words that make a command small are put behind it; the
rest is the command's own. The table of backbones is as on a GPU: half precision where nothing is said.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import huggingface_hub
import pytest
import torch
from rehearsal import fake_hub
from rehearsal.readme import README, SECTION, sdxl_commands

from riebench.analysis import Run
from riebench.backbones.folders import fetch_name
from riebench.backbones.loading import choose_dtype
from riebench.backbones.table import BACKBONES
from riebench.cli import main
from riebench.core import files
from riebench.edits.edit import load_edits
from riebench.edits.sets import write_set_file
from riebench.runs import config

COMMANDS = sdxl_commands(README.read_text())
CATEGORIES = ("change_object",)  # of which the edit set has an edit in each split here
#: Words of a command -> what makes it small; the first that fits counts.
SMALL = {
    ("run", "--mode", "reference"): (),  # which has a seed of its own
    ("run", "leaderboard"): (),  # whose entries are of all edits with three seeds
    ("run", "sdxl-base@25"): ("--categories", CATEGORIES[0], "--seeds", "42"),
    ("run",): ("--seeds", "42"),
    ("index-text",): ("--prompts", "2"),  # of what few edits say
    ("train",): ("--batch-size", "16"),
    ("evaluate",): ("--count", "4", "--images", "1"),
}
PROMPTS = [
    f"a {colour} {thing} in the sky"
    for colour in ("red", "blue")
    for thing in ["heart", "cat", "dog", "tree", "car", "star", "man", "house"]
]


@dataclass
class Rehearsal:
    """A folder and a cache that begin empty, and what the commands said that were run in them."""

    folder: Path
    done: list[tuple[int, str, str]] = field(default_factory=list)
    """Of each command its exit status and what it said on stdout and stderr."""

    def upto(self, number: int) -> tuple[int, str, str]:
        """Runs the commands that come before it, where they were not run, and it; returns what came of it."""
        while len(self.done) <= number:
            self.done.append(self.run(COMMANDS[len(self.done)][1:]))
        return self.done[number]

    def all(self) -> Path:
        self.upto(len(COMMANDS) - 1)
        return self.folder

    def run(self, words: list[str]) -> tuple[int, str, str]:
        more = next((small for key, small in SMALL.items() if set(key) <= set(words)), ())
        out, err = io.StringIO(), io.StringIO()
        with contextlib.chdir(self.folder), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = main([*words, *more])
        return status, out.getvalue(), err.getvalue()


def write_few_edits(data: Path) -> None:
    """Writes a data folder whose set of SDXL's edits is the first of both splits in two categories."""
    edits = [edit for edit in load_edits("riebench") if edit.category in CATEGORIES]
    few = {(edit.category, edit.tags["split"]): edit for edit in reversed(edits)}.values()
    folder = data / "edits" / "riebench"
    folder.mkdir(parents=True)
    for other in files.data_folder().iterdir():
        if other.name != "edits":
            (data / other.name).symlink_to(other)
    for edit in few:
        with (folder / f"{edit.category}.jsonl").open("a") as file:
            file.write(json.dumps(vars(edit)) + "\n")
    write_set_file(
        folder, few, name="riebench", version="few", licence="CC-BY-4.0", source="riebench", checked="any set"
    )


def write_presets(folder: Path) -> Path:
    """Writes the shipped runs with fewer neurons and components, of which the small models have a fiftieth and a
    twentieth, and returns where."""
    shutil.copytree(config.PRESETS, folder)
    for path in folder.glob("sdxl/*.yaml"):
        text = path.read_text()
        for method, share in (("neurons", 50), ("pca", 20)):
            text = re.sub(rf"({method}\s+k: )(\d+)", lambda k, share=share: f"{k[1]}{int(k[2]) // share}", text)
        path.write_text(text)
    return folder


@pytest.fixture(scope="module")
def rehearsal(hub_home, tmp_path_factory) -> Iterator[Rehearsal]:
    folder = tmp_path_factory.mktemp("rehearsal")
    (folder / "prompts.txt").write_text("\n".join(PROMPTS) + "\n")
    write_few_edits(folder / "data")
    with pytest.MonkeyPatch.context() as patch:
        fake_hub.use(folder / "home", patch, dtype="float16", steps={"sdxl-base@25": 3})
        patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        patch.setattr(huggingface_hub, "snapshot_download", fake_hub.download_from(hub_home))
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        patch.setattr(files, "data_folder", lambda: folder / "data")
        patch.setattr(config, "PRESETS", write_presets(folder / "presets"))
        yield Rehearsal(folder)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(COMMANDS)), ids=[" ".join(words[1:3]) for words in COMMANDS])
def test_a_command_of_the_readme_runs(rehearsal, number):
    status, out, err = rehearsal.upto(number)
    assert status == 0, err
    assert out and "Traceback" not in err


@pytest.mark.slow
def test_what_the_commands_leave_is_whole(rehearsal):
    """Every run has a report and results of every method in order, with pictures that are not of one colour."""
    folder = rehearsal.all()
    for name, backbone in {
        "turbo-4": "sdxl-turbo@4",
        "turbo-1": "sdxl-turbo@1",
        "reference": "sdxl-turbo@4",
        "base": "sdxl-base@25",
        "entry": "sdxl-turbo@4",
    }.items():
        run = Run.open(folder / "runs" / name)
        assert (run.folder / "report.html").stat().st_size > 100_000
        scores = run.scores
        assert set(scores["backbone"]) == {backbone}
        assert set(scores["dtype"]) == {"float32" if name == "reference" else "float16"}
        works = scores[scores["status"] == "ok"].groupby("method").size()
        assert set(works.index) == set(scores["method"]) >= {"sae", "dense", "neurons", "text-selected"}, name
        assert len(works) and works["noop"] >= len(scores[scores["method"] == "noop"]) / 2
        changed = scores[
            (scores["status"] == "ok") & (scores["method"] == "sae") & (scores["blocks"].str.count("[+]") == 3)
        ]
        assert len(changed) and (changed["lpips_original"] > 0).all()
        case = next(iter(changed[["edit", "seed"]].itertuples(index=False, name=None)))
        original = run.images(case)["original"]
        assert original.size == (fake_hub.PIXELS, fake_hub.PIXELS)
        assert all(high - low > 50 for low, high in original.getextrema())
    assert Run.open(folder / "runs" / "turbo-4").scores["siglip2_text_edited"].notna().any()
    assert json.loads((folder / "saes" / "index.json").read_text())
    assert (folder / "edit.png").is_file()


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_what_is_fetched_is_of_the_precision_that_the_next_commands_compute_in(device):
    fetched, asked = set(), 0
    for line in README.read_text().partition(SECTION)[2].splitlines():
        command, _, said = line.partition("  ")
        words = command.split()
        if words[:2] == ["riebench", "fetch"]:
            fetched |= {*words[2:], *(re.findall(r"on a CPU (\S+)", said) if device == "cpu" else ())}
        elif words[:1] == ["riebench"] and "--backbone" in words:
            backbone = BACKBONES.get(words[words.index("--backbone") + 1])
            dtype = words[words.index("--dtype") + 1] if "--dtype" in words else "auto"
            name = fetch_name(backbone, str(choose_dtype(backbone, torch.device(device), dtype)).removeprefix("torch."))
            assert name in fetched, f"{line}: {name} is not fetched before it"
            asked += 1
    assert asked > 6
