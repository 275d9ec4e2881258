"""Every verb in a folder full of files of others, many of them called like the tool's own: none is changed or removed.

A verb that is added has to be listed in `LINES`.
"""

from __future__ import annotations

import os
import shlex
from pathlib import Path

import pytest
from PIL import Image

from riebench.cli import VERBS, main
from riebench.core.files import data_folder
from riebench.edits.edit import CATEGORIES

INDEX = next((data_folder() / "tinyworld" / "text_index").iterdir()).name
NAMES = [
    ".env.template",
    ".bashrc.original",
    ".lock",
    ".writer",
    ".store.json.abcdefgh.json",
    ".report.html.00000000.html",
    "manifest.json",
    "report.html",
    "summary.json",
    "scores.parquet",
    "scoring.parquet",
    "selftest.json",
    "store.json",
    "index.json",
    "index.html",
    "compare.md",
    "compare.csv",
    "compare.json",
    "effects.csv",
    "agreement.md",
    "tables.md",
    "mine.yaml",
    "cfg.json",
    "sae_weights.safetensors",
    "set.json",
    "vocab.json",
    "oracle.safetensors",
    INDEX,
    *(f"{category.name}.jsonl" for category in CATEGORIES),
    "mid.0/.shard-000000.safetensors.abcdefgh.safetensors",
    "mid.0/shard-000000.safetensors",
    "parts/000000001-0badc0de.parquet",
    "images/e/42/.cat-0123456789ab.png.abcdefgh.png",
    "masks/a.png",
    "training/0badc0de/state.pt",
    "state/vae.pt",
    "base/model_index.json",
    "runs/quickstart/manifest.json",
    "runs/quickstart-edits=mine.yaml/.hidden",
    "site/index.html",
    "selftest/.notes",
    "data/leaderboard/tinyworld-turbo@1/sae/entry.json",
    "a/b/c/.git/config",
]
SAE = data_folder() / "tinyworld" / "dictionaries" / "tinyworld-turbo-1" / "mid.0" / "topk-k4-x4"
#: Verb -> what is tried of it. All of them fail but those after ">", which write nothing here.
LINES = {
    "run": ["quickstart", "quickstart --out .", "quickstart --out linked", "quickstart --edits mine.yaml --out ./a/.."],
    "edit": ["'a red heart' 'a blue heart'", "a b --out .", "a b --out manifest.json", "a b --out linked.png"],
    "score": [". --metrics ssim", "linked --metrics ssim"],
    "compare": [". runs/quickstart --out .", ". --out linked"],
    "dominance": [". --out effects.csv", ". --out manifest.json", ". --out .", ". --out dangling"],
    "agreement": [". --out agreement.md", ". --out report.html", ". --out linked"],
    "fetch": ["nothing"],
    "doctor": ["--run mine.yaml"],
    "selftest": ["", "--out .", "--out linked"],
    "new-edits": ["mine.yaml", "effects.csv", "."],
    "import": ["riebench manifest.json --out .", "pie-bench manifest.json --out linked"],
    "validate": [".", "mine.yaml"],
    "submit": [".", ". --out ."],
    "leaderboard": ["", "--out .", "--out linked", "--out manifest.json"],
    "ls": ["> edits", "nothing"],
    "harvest": ["--count 1 --out .", "--count 1 --out linked", "--count 1 --out runs"],
    "train": ["--out .", "--out linked", "--store . --out runs"],
    "convert": [f"{SAE} .", f"{SAE} . --to sparsify", ". runs"],
    "publish": [". owner/name"],
    "index-text": ["--prompts 1 --out .", "--prompts 1 --out linked"],
    "evaluate": ["--out tables.md", "--out .", "--out linked"],
    "tinyworld train": ["--out .", "--out linked --only clip", "--out state --only dictionaries"],
    "tinyworld evaluate": ["--device nowhere"],
    "tinyworld edits": ["--out .", "--out linked"],
}


def tree(folder: Path) -> dict[str, tuple]:
    """Name -> what is there, of everything below a folder."""
    found = {}
    for path in sorted(folder.rglob("*")):
        stat = path.lstat()
        content = os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else b""
        found[path.relative_to(folder).as_posix()] = (stat.st_mode, stat.st_mtime_ns, content)
    return found


@pytest.fixture
def foreign(tmp_path, monkeypatch):
    """The current directory, full of files of others; `linked` leads to another one like it."""
    for folder in (tmp_path / "here", tmp_path / "elsewhere"):
        for name in NAMES:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(f"mine: {name}")
    here = tmp_path / "here"
    Image.new("RGB", (8, 8)).save(here / "edit.png")
    (here / "linked").symlink_to(tmp_path / "elsewhere")
    (here / "linked.png").symlink_to(here / "edit.png")
    (here / "dangling").symlink_to(tmp_path / "nowhere")
    monkeypatch.chdir(here)
    return tmp_path


def test_every_verb_is_tried():
    assert sorted(LINES) == sorted(verb.name for verb in VERBS)


@pytest.mark.parametrize("verb", LINES)
def test_no_verb_changes_a_file_of_others(verb, foreign, capsys):
    before = tree(foreign)
    for line in LINES[verb]:
        works = line.startswith(">")
        assert main([*verb.split(), *shlex.split(line.removeprefix(">"))]) == (0 if works else 2), line
        said = capsys.readouterr().err
        assert works or said.splitlines()[-1].startswith("riebench: "), line
        assert tree(foreign) == before, line
