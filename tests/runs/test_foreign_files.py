"""Files of others are safe: a folder that holds any and is no run directory is refused, and nothing is touched."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from riebench.api import run
from riebench.cli import main
from riebench.core.errors import UserError
from riebench.core.files import MARKER, named_path, write_text
from riebench.runs.rescore import score_run
from riebench.runs.store import Batch, Store

#: Names as people have them, many of them like those of the tool or of what it has not finished.
FOREIGN = {
    ".env.template": "SECRET=1",
    ".bashrc.original": "alias ls=ls",
    ".config.json.abcdefgh.json": "{}",
    "manifest.json": '{"status": "finished", "mine": true}',
    "report.html": "<p>my report</p>",
    "summary.json": "[]",
    "scores.parquet": "not a table",
    "parts/.hidden.original": "1",
    "parts/000000001-0badc0de.parquet": "not a table",
    "images/cat.png": "cat",
    "images/a/b/.cat-0123456789ab.png.original": "cat",
    "src/.git.00000000": "x",
}
#: What may lie in a run directory beside the tool's own, put there by somebody.
BESIDE = {
    ".env.template": "SECRET=1",
    "notes/.todo.original": "x",
    "images/.thumbs.database": "x",
    "images/e/42/.mine.original.png": "x",
    "images/e/42/holiday.png": "x",
    "parts/.backup.original.parquet": "x",
    "parts/readme.txt": "x",
}
#: As `files.replacing` leaves them behind when it is killed.
UNFINISHED = (
    ".manifest.json.abcd_123.json",
    ".report.html.00000000.html",
    "..writer.zzzzzzzz",
    "parts/.000000001-0badc0de.parquet.abcdefgh.parquet",
    "images/e/42/.mine-0123456789ab.png.abcdefgh.png",
)


def fill(folder: Path, texts: dict[str, str]) -> None:
    for name, text in texts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def tree(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Name -> bytes and time of every file below a folder."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def row(number: int) -> dict:
    return {"recipe": f"r{number}", "code": "c", "scoring": "j", "status": "failed", "image": ""}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_store_refuses_a_folder_with_any_file_of_others(tmp_path, name):
    fill(tmp_path, {name: FOREIGN[name]})
    before = tree(tmp_path)
    said = f"{tmp_path} is not empty and no run directory: it holds {name.split('/')[0]}"
    with pytest.raises(UserError, match=said), Store(tmp_path):
        pass
    assert tree(tmp_path) == before


def test_a_run_into_the_current_directory_touches_nothing(tmp_path, monkeypatch, capsys):
    fill(tmp_path, FOREIGN)
    before = tree(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert main(["run", "quickstart", "--out", ".", "--edits-per-category", "1"]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"riebench: {tmp_path} is not empty and no run directory") and "-> give --out" in said
    with pytest.raises(UserError, match="no run directory"):
        run("quickstart", out=".", edits_per_category=1)
    with pytest.raises(UserError, match="no run directory"):
        score_run(tmp_path, ["ssim"])
    assert tree(tmp_path) == before


@pytest.mark.parametrize("empty", ["", " "])
def test_an_empty_path_is_an_error_and_not_the_current_directory(empty, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["run", "quickstart", "--out", empty]) == 2
    assert capsys.readouterr().err == "riebench: --out is empty -> leave it out, or say what it is\n"
    with pytest.raises(UserError, match="an empty path names nothing"):
        run("quickstart", out=empty)
    assert not os.listdir(tmp_path)


def test_a_path_may_begin_at_home(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert named_path("~/runs/x") == tmp_path / "runs" / "x" and named_path(Path("a")) == Path("a")


def test_in_a_run_directory_only_the_tools_own_unfinished_files_go(tmp_path):
    with Store(tmp_path) as store:
        store.add(Batch([row(0)], {}))
    fill(tmp_path, BESIDE)
    kept = tree(tmp_path)
    fill(tmp_path, dict.fromkeys(UNFINISHED, "half"))
    (tmp_path / ".report.html.11111111.html").mkdir()  # a folder of that name is nobody's leftover
    with Store(tmp_path) as store:
        assert store.row("r0") and not store.damage
    after = tree(tmp_path)
    del kept[".writer"], after[".writer"]  # who writes now
    assert after == kept and (tmp_path / ".report.html.11111111.html").is_dir()


def test_unfinished_files_are_named_as_the_store_looks_for_them(tmp_path, monkeypatch):
    """The names in `UNFINISHED` are those that `files.replacing` gives."""
    import riebench.core.files as files

    with Store(tmp_path) as store:
        pass
    seen = []
    monkeypatch.setattr(files.os, "replace", lambda source, _target: seen.append(Path(source)))
    for name in ("manifest.json", ".writer", "parts/000000001-0badc0de.parquet", "images/e/4/x-0123456789ab.png"):
        write_text(tmp_path / name, "half")
        seen[-1].write_text("half")
    assert len(seen) == 4 and all(path.is_file() for path in seen)
    monkeypatch.undo()
    with Store(tmp_path) as store:
        assert not store.damage and not any(path.exists() for path in seen)


def test_an_empty_folder_becomes_a_run_directory_and_is_taken_again(tmp_path):
    (tmp_path / "runs").mkdir()
    for _ in range(2):
        with Store(tmp_path / "runs") as store:
            store.add(Batch([row(1)], {}))
    assert (tmp_path / "runs" / MARKER).is_file()
