"""What `benchmarks/engine.py` calls equal scores, of rows by hand."""

from __future__ import annotations

import importlib
import math
import sys
from pathlib import Path

import pandas as pd
import pytest

from riebench.metrics import default_metrics

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def engine(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield importlib.import_module("engine")
    del sys.modules["engine"]


def written(path, **cells):
    row = {"edit": "pose-0", "seed": 42, "method": "sae", "strength": 1.0, "blocks": "mid.0", "status": "ok"}
    row |= dict.fromkeys(default_metrics("tinyworld"), 0.25) | {"lpips_original": 0.1} | cells
    pd.DataFrame([row]).to_parquet(path)
    return path


@pytest.mark.parametrize(
    ("one", "other", "equal"),
    [
        ({}, {}, True),
        ({"edit_efficiency": 0.25 + 0.05}, {}, True),
        ({"edit_efficiency": 0.25 + 0.14}, {}, False),
        ({"edit_efficiency": math.nan}, {}, False),  # far from the edge one of them must be wrong
        ({"edit_efficiency": math.nan, "lpips_original": 0.00199}, {"lpips_original": 0.00201}, True),
        ({"edit_efficiency": math.nan, "lpips_original": 0.0017}, {"lpips_original": 0.0021}, False),
        ({"edit_efficiency": math.nan}, {"edit_efficiency": math.nan}, True),
        ({"clip_text_edited": math.nan}, {}, False),
        ({"clip_text_edited": 0.252}, {}, False),
        ({"oracle_success": 0.0}, {"oracle_success": 1.0}, False),
    ],
)
def test_scores_are_equal_or_not_and_the_exit_status_says_so(engine, tmp_path, monkeypatch, capsys, one, other, equal):
    rows = [written(tmp_path / f"{name}.parquet", **cells) for name, cells in (("one", one), ("other", other))]
    differences = engine.differ(*rows)
    tolerated = {name: value <= engine.TOLERANCE.get(name, 1e-3) for name, value in differences.items()}
    assert all(tolerated.values()) == equal
    part = {"results": 1, "seconds": 1.0, "results_per_second": 1.0, "peak_mb": 1.0, "cores": 2}

    def done(command, **_):
        where = Path(command[command.index("--out") + 1])
        where.write_bytes(rows["engine" in command].read_bytes())
        return type("Done", (), {"stdout": engine.json.dumps(part).encode()})

    monkeypatch.setattr(engine.subprocess, "run", done)
    monkeypatch.setattr("sys.argv", ["engine.py"])
    assert engine.main() == (0 if equal else 1)
    said = capsys.readouterr().out
    assert (
        f"equal scores: {'yes' if equal else 'NO'}" in said and "edit efficiency withheld in 0" in said or "0.0" in said
    )
