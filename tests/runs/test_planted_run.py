"""Real runs beside the truth: of the embedded model it is known, of one of one's own it is not."""

from __future__ import annotations

import json

import pytest

from riebench.analysis import block_table
from riebench.backbones.table import BACKBONES
from riebench.backbones.worlds import CHANGED
from riebench.core.files import data_folder
from riebench.runs.config import build_config
from riebench.runs.run import report_again, run

SMALL = {"edits": "tinyworld", "seeds": [42], "categories": ["change_pose"], "resamples": 500}


def test_a_run_on_the_embedded_model_says_its_planted_blocks(small_run):
    known = BACKBONES.get("tinyworld-turbo@1")
    planted = {category: known.planted_block(category) for category in CHANGED}
    assert small_run.manifest["planted"] == small_run.summary["planted"] == planted
    assert "planted block" in small_run.report.read_text()
    assert "Planted: the one block" in block_table(small_run.summary)


@pytest.mark.slow
def test_without_a_dictionary_the_planted_block_is_found(tmp_path):
    methods = ["noop", "oracle-prompt", "prompt-injection"]
    config = build_config(
        SMALL | {"edits_per_category": 6, "methods": methods, "subsets_of": "prompt-injection"}, "here"
    )
    done = run(config, tmp_path / "run", device="cpu")
    assert done.summary["planted"] == {"change_pose": "mid.0"}
    text = block_table(done.summary)
    assert "prompt-injection, by gain in CLIP: 1 of 1 categories name the planted block; 0 name another" in text
    page = done.report.read_text()
    assert page.count("✓ mid.0") == 2 and "1 of 1 as planted by gain in CLIP" in page


@pytest.mark.slow
def test_of_a_model_whose_truth_is_not_known_no_block_is_said_to_be_planted(tmp_path):
    mine = {"name": "mine@1", "like": "tinyworld-turbo@1", "folder": str(data_folder() / "tinyworld" / "turbo")}
    words = {"backbone": mine, "edits_per_category": 1, "methods": ["noop", "dense"], "subsets_of": "dense"}
    done = run(build_config(SMALL | words, "here"), tmp_path / "run", device="cpu")
    assert done.manifest["planted"] == done.summary["planted"] == {} and done.summary["dominance"]
    shown = done.report.read_text().partition("</style>")[2].partition('<section id="what-was-run">')[0]
    assert "planted" not in shown + block_table(done.summary)
    told = json.loads((done.folder / "manifest.json").read_text())
    del told["planted"]  # as of a run from before it was told
    (done.folder / "manifest.json").write_text(json.dumps(told))
    assert report_again(done.folder).summary["planted"] == {}
