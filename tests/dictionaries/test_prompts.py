"""Prompts from every kind of source, and what cannot be read."""

from __future__ import annotations

import json
import sys
import types

import pandas as pd
import pytest

from riebench.core.errors import UserError
from riebench.dictionaries.prompts import LAION_COCO, read_prompts
from riebench.tinyworld.captions import parse


def test_captions_are_of_the_world_and_drawn_from_the_seed():
    drawn = read_prompts("captions", count=40, seed=3)
    assert len(drawn) == 40 and all(parse(prompt) for prompt in drawn)
    assert drawn == read_prompts(count=40, seed=3, family="tinyworld")
    assert drawn != read_prompts("captions", count=40, seed=4)
    with pytest.raises(UserError, match="how many"):
        read_prompts("captions")


def test_a_text_file_has_a_prompt_a_line(tmp_path):
    path = tmp_path / "mine.txt"
    path.write_text("  a cat \n\na dög\na fox", encoding="utf-8")
    assert read_prompts(str(path)) == ["a cat", "a dög", "a fox"]
    assert read_prompts(str(path), count=2) == ["a cat", "a dög"]
    with pytest.raises(UserError, match="holds 3 prompts"):
        read_prompts(str(path), count=4)
    with pytest.raises(UserError, match="no columns"):
        read_prompts(str(path), column="caption")


def test_a_column_of_json_lines_and_of_parquet(tmp_path):
    rows = [{"id": i, "caption": text, "alt": f"alt {i}"} for i, text in enumerate(["a cat", None, "a dog", " "])]
    lines, table = tmp_path / "p.jsonl", tmp_path / "p.parquet"
    lines.write_text("\n".join(map(json.dumps, rows)) + "\n")
    pd.DataFrame(rows).to_parquet(table)
    for path in (lines, table):
        assert read_prompts(str(path)) == ["a cat", "a dog"]
        assert read_prompts(str(path), column="alt", count=3) == ["alt 0", "alt 1", "alt 2"]
        with pytest.raises(UserError, match="did you mean 'caption'"):
            read_prompts(str(path), column="captoin")
        with pytest.raises(UserError, match="not text"):
            read_prompts(str(path), column="id")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"prompt": "x"}\n{"prompt": \n', "line 2: not JSON"),
        ("a.jsonl", b'{"prompt": "x"}\n[3]\n', "line 2: not a JSON object"),
        ("a.jsonl", b'{"words": "x"}\n', "no column 'prompt' or 'caption' or 'text'"),
        ("a.parquet", b"PAR1 and no more", "cannot be read"),
        ("a.txt", b"\xff\xfe\xfa", "cannot be read"),
        ("a.txt", b"\n \n", "holds 0 prompts"),
        ("a.csv", b"x", "cannot be read from"),
    ],
)
def test_broken_files_are_named(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        read_prompts(str(path))
    assert str(path) in str(caught.value)


def test_what_is_not_there(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        read_prompts(str(tmp_path / "none.txt"))
    with pytest.raises(UserError, match="did you mean 'captions'"):
        read_prompts("caption")


def test_a_data_set_is_read_as_a_stream(monkeypatch):
    asked = []

    def load_dataset(name, split, streaming):
        asked.append((name, split, streaming))
        if name == "not/there":
            raise FileNotFoundError("no such data set")
        return ({"caption": f"caption {i}", "url": "u"} for i in range(10**9))

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    assert read_prompts("datasets:some/set:test", count=2) == ["caption 0", "caption 1"]
    assert len(read_prompts(count=3, family="sdxl")) == 3
    assert asked == [("some/set", "test", True), (LAION_COCO.split(":")[1], "train", True)]
    with pytest.raises(UserError, match="did you mean 'caption'"):
        read_prompts("datasets:some/set", column="captions", count=2)
    with pytest.raises(UserError, match="not/there cannot be read: FileNotFoundError: no such data set"):
        read_prompts("datasets:not/there", count=2)


def test_without_the_package_it_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match="pip install datasets"):
        read_prompts("datasets:some/set", count=2)
