"""JSON that every reader can read, wherever the project writes it."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import numpy as np
import pytest

from riebench.core.files import write_json
from riebench.core.json_text import json_text

ROOT = Path(__file__).parents[2]
INF = float("inf")
VALUES = [
    (float("nan"), "null"),
    (-INF, "null"),
    ({"a": [1.5, float("nan"), {"b": (INF, 2)}], "c": "NaN"}, '{"a": [1.5, null, {"b": [null, 2]}], "c": "NaN"}'),
    (np.float64("nan"), "null"),
    ({1: True, 2: None}, '{"1": true, "2": null}'),
    ("NaN", '"NaN"'),
]


@pytest.mark.parametrize(("value", "text"), VALUES, ids=str)
def test_what_json_has_no_word_for_is_null(tmp_path, value, text):
    assert json_text(value) == text
    json.loads(text, parse_constant=pytest.fail)
    write_json(tmp_path / "x.json", {"value": value})
    json.loads((tmp_path / "x.json").read_text(), parse_constant=pytest.fail)


def test_what_is_finite_is_written_as_json_writes_it():
    value = {"b": [1, 2.5, "é", None, True], "a": {"nested": [[]]}}
    for options in ({}, {"indent": 2, "sort_keys": True}, {"ensure_ascii": False}, {"default": str}):
        assert json_text(value, **options) == json.dumps(value, **options)


def test_nothing_else_in_the_project_writes_json_that_may_hold_nan():
    """Every call of `json.dump` or `json.dumps`, and of pandas' `to_json`, outside of this one module."""
    found = []
    paths = [
        path
        for folder in ("riebench", "sae_models", "baselines", "benchmarks")
        for path in (ROOT / folder).rglob("*.py")
    ]
    for path in (
        path for path in paths if "json" in (text := path.read_text()) and ("dump" in text or "to_json" in text)
    ):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("json.dump", "json.dumps", ".to_json")):
                given = {word.arg: word.value for word in node.keywords}
                if not ("allow_nan" in given and ast.literal_eval(given["allow_nan"]) is False):
                    found.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert paths
    assert found == []
