"""The engine beside the plain loop of `benchmarks/naive_loop.py`, written from the protocol: equal scores."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import pandas as pd
import pytest

from riebench.core.errors import UserError
from riebench.edits.edit import load_edits
from riebench.runs.config import read_config
from riebench.runs.run import run

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SETTINGS = str(BENCHMARKS / "settings.yaml")


@pytest.fixture
def scripts(monkeypatch):
    """The benchmark scripts, as modules: (the loop, the comparison)."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import engine
    import naive_loop

    yield naive_loop, engine
    for name in ("engine", "naive_loop"):
        del sys.modules[name]


@pytest.mark.slow
@pytest.mark.parametrize(("backbone", "count"), [("tinyworld-turbo@1", 3), ("tinyworld-turbo@4", 1)])
def test_the_engine_s_scores_are_those_of_the_plain_loop(scripts, tmp_path, backbone, count):
    """To what batches of another size change: a pixel may fall on the other side of a rounding boundary."""
    naive_loop, comparison = scripts
    config = read_config(SETTINGS, {"backbone": backbone, "seeds": [42], "resamples": 10, "edits_per_category": 0})
    edits = load_edits()[60 :: 480 // count][:count]
    peer = pd.DataFrame(naive_loop.naive_rows(config, edits, config.seeds))
    peer.to_parquet(tmp_path / "naive.parquet")
    found = run(
        dataclasses.replace(config, categories=tuple({e.category: 1 for e in edits})), tmp_path / "run", edits=edits
    )
    assert len(peer) == len(found.scores) == 20 * count and (peer.status == "ok").any()
    differences = comparison.differ(tmp_path / "naive.parquet", tmp_path / "run" / "scores.parquet")
    for metric, difference in differences.items():
        assert difference <= comparison.TOLERANCE.get(metric, 1e-3), metric


def test_the_plain_loop_refuses_what_it_cannot_do(scripts):
    with pytest.raises(UserError, match="without guidance"):
        scripts[0].naive_rows(read_config(SETTINGS, {"backbone": "tinyworld-base@25"}), load_edits()[:1], [42])


def test_more_strengths_are_more_settings(scripts):
    config = scripts[1].with_strengths(read_config(SETTINGS), 2)
    assert [method.name for method in config.methods].count("sae") == 2
    assert [method.name for method in config.methods].count("noop") == 1
