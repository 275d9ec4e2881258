"""Edits as other programs save them: what people have, in `tests/data/edits`, and every encoding of one set."""

import codecs
import json
from pathlib import Path

import pytest

from riebench.cli import main
from riebench.core.errors import UserError
from riebench.dictionaries.prompts import read_prompts
from riebench.edits.checks import validate_edits
from riebench.edits.edit import load_edits, meant_edits, path_of, shipped_sets
from riebench.edits.importers import import_edits
from riebench.edits.template import write_template

CASES = Path(__file__).parents[1] / "data" / "edits"
CIRCLE = "flat poster of a standing red plain circle on a meadow"


@pytest.mark.parametrize("name", ["bom.jsonl", "semicolon.csv", "sep-line.csv"])
def test_what_people_have_is_read(name, capsys):
    assert main(["validate", str(CASES / name)]) == 0
    found = {edit.id: edit for edit in load_edits(CASES / name)}
    assert set(found) == {"blau", "stern"}
    blue, star = found["blau"], found["stern"]
    assert (blue.category, blue.original_prompt, blue.original_region) == ("change_colour", CIRCLE, "circle")
    assert blue.edited_prompt == CIRCLE.replace("red", "blue")
    assert (star.category, star.edited_prompt) == ("change_object", CIRCLE.replace("circle", "star"))
    assert (star.original_region, star.edited_region) == ("circle", "star")


def test_a_published_list_with_a_mark_is_imported(tmp_path):
    imported = import_edits("riebench", CASES / "published-bom.json", tmp_path / "out")
    (edit,) = load_edits(tmp_path / "out")
    assert imported.edits == (edit,) and (edit.id, edit.category) == ("1", "change_colour")
    assert (edit.original_prompt, edit.edited_prompt) == ("a [red] kite above dunes", "a [blue] kite above dunes")


ENCODED = [(codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be")]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize(("mark", "encoding"), ENCODED, ids=lambda value: str(value))
@pytest.mark.parametrize("suffix", ["yaml", "csv", "jsonl"])
def test_an_example_reads_the_same_however_it_was_saved(tmp_path, suffix, mark, encoding, end):
    path = tmp_path / f"mine.{'yaml' if suffix == 'jsonl' else suffix}"
    expected = load_edits(write_template(path))
    text = path.read_text() if suffix != "jsonl" else "\n".join(json.dumps(vars(edit)) for edit in expected)
    again = tmp_path / f"again.{suffix}"
    again.write_bytes(mark + text.replace("\n", end).encode(encoding))
    assert load_edits(again) == expected and validate_edits(again) == []


@pytest.mark.parametrize("suffix", ["yaml", "csv", "jsonl"])
def test_another_encoding_is_a_line_that_says_what_to_do(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(f"id,category\nübung,{suffix}".encode("cp1252"))
    (problem,) = validate_edits(path)
    assert (problem.line, problem.file) == (2, str(path)) and "0xfc" in problem.what and "UTF-8" in problem.remedy
    (tmp_path / "b.jsonl").write_text("{}")
    assert len(validate_edits(tmp_path)) > 1  # what is wrong with the other file is said too


def test_columns_without_a_name_and_cells_are_what_a_spreadsheet_leaves(tmp_path):
    path, text = tmp_path / "a.csv", (CASES / "semicolon.csv").read_text(encoding="utf-8-sig")
    path.write_text("\n".join(f"{line};;" for line in text.splitlines()))
    assert load_edits(path) == load_edits(CASES / "semicolon.csv")
    path.write_text(path.read_text().replace("star;;", "star;lost;"))
    with pytest.raises(UserError, match="line 3: unknown key ''"):
        load_edits(path)


@pytest.mark.parametrize(("mark", "encoding"), ENCODED, ids=lambda value: str(value))
def test_prompts_are_read_in_every_encoding(tmp_path, mark, encoding):
    prompts = ["ein Löwe", "狮子 🦁"]
    (tmp_path / "a.txt").write_bytes(mark + "\r\n".join(prompts).encode(encoding))
    lines = "\r".join(json.dumps({"prompt": prompt}, ensure_ascii=False) for prompt in prompts)
    (tmp_path / "a.jsonl").write_bytes(mark + lines.encode(encoding))
    assert read_prompts(str(tmp_path / "a.txt")) == read_prompts(str(tmp_path / "a.jsonl")) == prompts
    (tmp_path / "b.txt").write_bytes("ein Löwe".encode("cp1252"))
    with pytest.raises(UserError, match="0xf6"):
        read_prompts(str(tmp_path / "b.txt"))


# ---- names of sets, and paths that are called the same


def test_a_dot_and_a_path_are_never_a_shipped_set(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_template(Path("mine.csv"))
    for name in (".", "./mine.csv", "mine.csv", f"../{tmp_path.name}", "~/mine.csv"):
        monkeypatch.setenv("HOME", str(tmp_path))
        assert {edit.id for edit in load_edits(name)} == {"blue-circle", "hat-for-the-circle"}, name
        assert main(["validate", name]) == 0
    capsys.readouterr()
    Path("empty").mkdir()
    monkeypatch.chdir("empty")
    for name in ("..", "."):
        assert meant_edits(name) == str((tmp_path / "empty" / name).resolve())
    assert main(["validate", "."]) == 2
    assert "there are no edits at" in capsys.readouterr().err


@pytest.mark.parametrize("name", shipped_sets())
def test_a_folder_called_like_a_shipped_set_is_ones_own_and_said_to_be(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).mkdir()
    assert meant_edits(name) == name and not capsys.readouterr().err  # it holds no edits
    write_template(tmp_path / name / "mine.yaml")
    assert meant_edits(name) == str(tmp_path / name)
    assert f"the edits '{name}' are those in {tmp_path / name}, not the shipped set" in capsys.readouterr().err
    assert main(["validate", name]) == 0
    capsys.readouterr()
    assert len(load_edits(Path(name))) == 2 and path_of(name) != tmp_path / name
    monkeypatch.chdir(path_of(name).parent)
    assert meant_edits(name) == name and not capsys.readouterr().err  # the shipped set itself


def test_an_id_is_a_line_of_text(tmp_path):
    edit = vars(load_edits("tinyworld")[0]) | {"id": "a\nb"}
    (tmp_path / "a.jsonl").write_text(json.dumps(edit) + "\n" + json.dumps(edit | {"id": "\x1b[2Jx"}))
    assert [problem.what for problem in validate_edits(tmp_path / "a.jsonl")] == [
        "id 'a\\nb' is no line of text",
        "id '\\x1b[2Jx' is no line of text",
    ]
