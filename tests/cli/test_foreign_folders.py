"""Every verb in a folder full of files of others, many of them called like the tool's own: none is changed or removed.

A verb that is added has to be listed in `LINES`.
"""

from __future__ import annotations

import dataclasses
import os
import shlex
from pathlib import Path

import pytest
from PIL import Image

from riebench.cli import VERBS, main
from riebench.core.claims import MARKERS, begins, claim_file, claim_folder, is_claimed
from riebench.core.errors import UserError
from riebench.core.files import data_folder
from riebench.core.own_pictures import claim_picture, save_picture
from riebench.edits.edit import CATEGORIES
from riebench.runs.config import RunConfig
from riebench.runs.folder import default_folder, folder_of_config

INDEX = next((data_folder() / "tinyworld" / "text_index").glob("*.safetensors")).name
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
        time = 0 if path.is_dir() and not path.is_symlink() else stat.st_mtime_ns
        found[path.relative_to(folder).as_posix()] = (stat.st_mode, time, content)
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


WITH_OUT = [
    verb.name
    for verb in VERBS
    for field in dataclasses.fields(verb.words)
    if field.name == "out" and not field.metadata.get("positional")
]
#: What a verb wants beside `--out`.
NEEDED = {
    "edit": "a b",
    "compare": "a",
    "dominance": "a",
    "agreement": "a",
    "run": "quickstart",
    "submit": "a",
    "import": "riebench a",
}


@pytest.mark.parametrize("verb", WITH_OUT)
def test_a_path_that_names_nothing_or_no_place_is_one_line(verb, foreign, capsys, monkeypatch):
    monkeypatch.setenv("HOME", str(foreign / "elsewhere"))
    before = tree(foreign)
    words = [*verb.split(), *shlex.split(NEEDED.get(verb, ""))]
    for out, said in (
        ("", "--out is empty"),
        ("  ", "--out is empty"),
        ("~nobody-of-that-name/x", "--out: ~nobody-of-that-name/x begins at a home that is not known"),
        ("a\0b", "zero byte"),
        ("~", ""),
        ("~/a/..", ""),
        ("manifest.json", ""),
        ("manifest.json/x", ""),
        ("x" * 300, ""),
        ("/proc/x", ""),
        ("/dev/null", ""),
    ):
        assert main([*words, "--out", out]) == 2, out
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("riebench: ") and said in line
        assert tree(foreign) == before, out


@pytest.mark.parametrize("out", ["~/new/run", "link-to-an-empty-folder", "./empty/.."])
def test_a_folder_that_is_new_or_empty_becomes_the_tools(out, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "target").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    if out.startswith("link"):
        (tmp_path / "here" / out).symlink_to(tmp_path / "target")
    for what, marker in MARKERS.items():
        where = f"{out}/{marker}"
        for _ in range(2):
            claimed = claim_folder(where, what)
            assert is_claimed(claimed, what) and os.listdir(claimed) == [marker]
        (claimed / "notes").write_text("mine")
        assert claim_folder(where, what) == claimed, "what is put there later is no reason to refuse"
        with pytest.raises(UserError, match="is not empty and no"):
            claim_folder(where, next(other for other in MARKERS if other != what))
    with pytest.raises(UserError, match="^/ is not empty"):
        claim_folder("/")
    assert (tmp_path / "home" / "new").exists() is out.startswith("~")
    assert not (tmp_path / "here" / "~").exists()


def test_a_file_is_replaced_where_the_tool_made_it_and_nowhere_else(tmp_path):
    made, table = tmp_path / "made.png", tmp_path / "table.csv"
    save_picture(Image.new("RGB", (4, 4)), made)
    table.write_text("run,block\na,b\n")
    assert claim_picture(made) == made and claim_file(table, begins("run,block")) == table
    Image.open(made).save(tmp_path / "copy.png")
    for path, claim in (
        (tmp_path / "copy.png", claim_picture),
        (table, lambda path: claim_file(path, begins("run,blocks"))),
        (tmp_path, lambda path: claim_file(path, begins(""))),
        (tmp_path / "picture.txt", claim_picture),
        (tmp_path / "picture", claim_picture),
        (table / "x.png", claim_picture),
    ):
        with pytest.raises(UserError):
            claim(path)
    for name in ("new/folder/a.webp", "b.JPG", "c.tiff"):
        save_picture(Image.new("RGB", (4, 4)), claim_picture(tmp_path / name))
        assert claim_picture(tmp_path / name)


def test_the_default_folder_of_a_run_says_what_differs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").mkdir()
    for name in ("mine.yaml", "a/mine.yaml", "mine.csv", "quickstart.yaml"):
        (tmp_path / name).write_text("seeds: [1]\n")
    asked = [
        ("quickstart", {}),
        ("quickstart", {"edits": "mine.yaml"}),
        ("quickstart", {"edits": "mine.csv"}),
        ("quickstart", {"edits": "a/mine.yaml"}),
        ("quickstart", {"seeds": (1,), "mode": "strict"}),
        ("quickstart", {"seeds": (1, 2)}),
        ("quickstart", {"backbone": "sdxl-turbo@4"}),
        ("quickstart.yaml", {}),
        ("mine.yaml", {}),
        ("a/mine.yaml", {}),
        ("mine.yaml", {"seeds": (2,)}),
    ]
    names = [default_folder(name, over) for name, over in asked]
    assert len(set(names)) == len(names) and all(name.parent == Path("runs") for name in names)
    assert [name.name for name in names[:4]] == [
        "quickstart",
        "quickstart-edits=mine.yaml",
        "quickstart-edits=mine.csv",
        "quickstart-edits=a-mine.yaml",
    ]
    same = [
        default_folder("quickstart", {"seeds": (42, 43), "batch_size": 3, "backbone": "tinyworld-turbo@1"}),
        default_folder("./a/../mine.yaml", {"seeds": (1,)}),
        default_folder(str(tmp_path / "a/mine.yaml"), {}),
    ]
    assert same == [names[0], names[8], names[9]]
    assert default_folder("quickstart", {"categories": ["a/../b c"] * 40}).name.count("/") == 0
    customs = [folder_of_config(RunConfig(seeds=(seed,)), own) for seed in (1, 2) for own in ((), ["edits=0badc0de"])]
    assert len({custom.name for custom in customs}) == 4
