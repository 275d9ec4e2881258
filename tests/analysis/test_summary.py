"""The summary of a run: what it holds and what it refuses."""

from __future__ import annotations

import json
import math

import numpy as np
import pandas as pd
import pytest
from planted import BLOCKS, PLANTED, fail, make_scores

from riebench.analysis import block_table, dominance_over, load_summary, summarise
from riebench.analysis.verdicts import NO_EFFECT, SHARED, TOO_FEW
from riebench.core.errors import UserError
from riebench.core.scores import SCORES, Score, describe_scores

WHOLE = "+".join(BLOCKS)


@pytest.fixture(scope="module")
def summary():
    return summarise(make_scores(PLANTED), BLOCKS, resamples=2000)


def row_of(summary, method, blocks=""):
    return next(row for row in summary["methods"] if (row["method"], row["blocks"]) == (method, blocks))


@pytest.mark.slow
def test_summary_is_plain_json_and_repeats(summary):
    again = summarise(make_scores(PLANTED), BLOCKS, resamples=2000)
    assert json.dumps(summary, allow_nan=False) == json.dumps(again, allow_nan=False)
    other = summarise(make_scores(PLANTED), BLOCKS, resamples=2000, seed=1)
    low = [row_of(s, "sae", "up.0.0")["gains"]["clip_text_edited"]["low"] for s in (summary, other)]
    assert low[0] != low[1]


def test_summary_says_what_was_run_and_what_its_scores_are(summary):
    assert (summary["backbone"], summary["steps"], summary["mode"]) == ("tinyworld-turbo@1", 1, "strict")
    assert summary["planned"] == 72 and summary["failed"] == {} and summary["left_out"] == []
    assert [score["name"] for score in summary["scores"]] == [score.name for score in SCORES]
    assert summary["scores"][5] == {
        "name": "lpips_original",
        "label": "LPIPS to original",
        "better": "lower",
        "meaning": "LPIPS-Alex distance to the original image",
        "bounds": [None, None],
        "needs": [],
        "source": "",
        "network": "",
        "weights_sha256": "",
        "preprocessing": "",
    }
    assert summary["values"] == ["clip_text_edited", "oracle_success", "lpips_original", "efficiency"]
    verdicts = {"alone": "up.0.0", "together": SHARED, "nothing": NO_EFFECT}
    for category, verdict in verdicts.items():
        row = summary["categories"][category]
        assert (row["planned"], row["edits"], row["cases"], row["failed"]) == (24, 12, 24, {})
        assert row["dominant"]["clip_text_edited"] == verdict
        assert row["dominant"] == summary["dominance"][0]["categories"][category]["dominant"]


def test_methods_are_paired_with_the_noop(summary):
    oracle, noop = row_of(summary, "oracle-prompt"), row_of(summary, "noop")
    gain = oracle["gains"]["clip_text_edited"]
    # every case gains 0.1 exactly: paired, nothing varies, though the scores themselves do
    assert gain["mean"] == pytest.approx(0.1) and (gain["low"], gain["withheld"]) == (None, "too few differ")
    assert oracle["scores"]["clip_text_edited"]["high"] - oracle["scores"]["clip_text_edited"]["low"] > 0.005
    assert gain["p_holm"] < 0.05
    assert row_of(summary, "sae", "mid.0")["gains"]["clip_text_edited"]["p_holm"] == 1.0
    assert noop["gains"]["clip_text_edited"] is None
    assert oracle["edits"] == 36 and oracle["cases"] == 72


def test_methods_of_a_category_are_those_of_a_run_of_it_alone(summary):
    alone = summarise(make_scores(PLANTED).query("category == 'together'"), BLOCKS, resamples=2000)
    assert summary["methods_by_category"]["together"] == alone["methods"]
    assert list(summary["methods_by_category"]) == list(PLANTED)


def test_seed_spread_is_the_deviation_of_the_means_of_seeds(summary):
    frame = make_scores(PLANTED)
    dense = frame[frame["method"] == "dense"]
    expected = dense.groupby("seed")["clip_text_edited"].mean().std()
    assert row_of(summary, "dense", WHOLE)["seed_spread"]["clip_text_edited"] == pytest.approx(expected)
    single = summarise(make_scores(PLANTED, seeds=(0,), num_edits=2), BLOCKS, resamples=50)
    assert set(row_of(single, "noop")["seed_spread"].values()) == {None}


def test_a_run_may_have_any_scores_beside_the_two_needed():
    shiny = Score("shiny", "Shininess", "higher", "how shiny it is", bounds=(0.0, None), needs=("region",))
    frame = make_scores({"alone": PLANTED["alone"]}, num_edits=2).drop(columns=["oracle_success", "clip_image_edited"])
    frame["shiny"] = np.where(frame["method"] == "dense", 0.75, 0.5)
    frame = describe_scores(frame, [*(score for score in SCORES if score.name in frame), shiny])
    summary = summarise(frame, BLOCKS, resamples=50)
    assert [score["name"] for score in summary["scores"]] == [
        *(score.name for score in SCORES if score.name not in ("oracle_success", "clip_image_edited")),
        "shiny",
    ]
    assert summary["scores"][-1]["bounds"] == [0.0, None] and summary["scores"][-1]["needs"] == ["region"]
    assert summary["values"] == ["clip_text_edited", "lpips_original", "efficiency"]
    dense = row_of(summary, "dense", WHOLE)
    assert dense["gains"]["shiny"]["mean"] == pytest.approx(0.25) and "oracle_success" not in dense["scores"]


def test_a_score_that_no_case_has_is_null():
    frame = make_scores({"alone": PLANTED["alone"]}, num_edits=2).assign(oracle_success=math.nan)
    frame.loc[frame["method"] == "noop", "clip_directional"] = math.nan
    summary = summarise(frame, BLOCKS, resamples=50)
    assert summary["values"] == ["clip_text_edited", "lpips_original", "efficiency"]
    assert row_of(summary, "noop")["scores"]["oracle_success"] is None
    dense = row_of(summary, "dense", WHOLE)
    assert dense["scores"]["clip_directional"] is not None and dense["gains"]["clip_directional"] is None
    json.dumps(summary, allow_nan=False)


def test_a_score_that_some_cases_lack_is_compared_on_the_others():
    frame = make_scores({"alone": PLANTED["alone"]}, num_edits=4)
    frame.loc[(frame["edit"] == "alone-1") & (frame["method"] == "dense"), "lpips_outside"] = math.nan
    frame.loc[frame["edit"] == "alone-1", "oracle_preservation"] = 100.0
    frame.loc[frame["edit"] == "alone-1", "lpips_outside"] = frame["lpips_outside"] + 100.0
    noop = row_of(summarise(frame, BLOCKS, resamples=50), "noop")["scores"]
    assert noop["lpips_outside"]["mean"] == 0.0
    assert noop["oracle_preservation"]["mean"] == pytest.approx(25.0)


# ---- failures


@pytest.mark.slow
def test_a_failure_takes_its_case_out_of_every_method():
    frame = make_scores({"alone": PLANTED["alone"]}, num_edits=3)
    clean = summarise(frame, BLOCKS, resamples=50)
    rows = frame.to_dict("records")
    at = next(i for i, row in enumerate(rows) if row["method"] == "dense")
    rows[at] = fail(rows[at], "empty mask")
    summary = summarise(pd.DataFrame(rows), BLOCKS, resamples=50)
    assert summary["categories"]["alone"]["failed"] == summary["failed"] == {"empty mask": 1}
    assert (summary["planned"], summary["overall"]["cases"], summary["overall"]["edits"]) == (6, 5, 3)
    levels = [s["methods"][0]["scores"]["clip_text_edited"]["mean"] for s in (clean, summary)]
    assert levels[0] != levels[1]


def test_one_edit_has_no_interval_and_no_verdict():
    summary = summarise(make_scores({"alone": PLANTED["alone"]}, num_edits=1), BLOCKS, resamples=50)
    row = summary["dominance"][0]["categories"]["alone"]
    shapley = row["effects"]["clip_text_edited"]["up.0.0"]["shapley"]
    assert row["edits"] == 1
    assert shapley == {"mean": shapley["mean"], "low": None, "high": None, "withheld": "too few edits"}
    assert shapley["mean"] > 0
    assert row["dominant"]["clip_text_edited"] == TOO_FEW and row["edits_needed"]["clip_text_edited"] == 10
    sae = row_of(summary, "sae", WHOLE)
    assert sae["scores"]["lpips_original"]["low"] is None
    assert sae["gains"]["clip_text_edited"]["low"] is None and sae["gains"]["clip_text_edited"]["p_holm"] is None
    lines = block_table(summary).splitlines()
    assert lines[2].count(" too few edits") == 5 and "[" not in lines[2]  # one of them is the verdict
    assert "No interval, too few edits: intervals need at least 10 edits." in lines
    assert "  too few edits (alone, all): run at least 10 edits a category" in lines
    effects = dominance_over([("run", summary)])
    assert set(effects["solo_interval"]) == {"too few edits"} and effects[["solo_low", "shapley_high"]].isna().all(
        axis=None
    )
    assert set(effects.loc[effects["value"] == "clip_text_edited", "edits_needed"]) == {10}


def test_a_block_that_does_nothing_has_no_interval_and_keeps_no_other_from_being_named():
    frame = make_scores({"alone": PLANTED["alone"]}, noise=0.0)
    summary = summarise(frame, BLOCKS, resamples=50)
    row = summary["dominance"][0]["categories"]["alone"]
    for block in BLOCKS:  # without noise every edit shows the same, the leading block's 0.1 as well
        assert row["effects"]["clip_text_edited"][block]["shapley"]["withheld"] == "too few differ"
    assert row["dominant"]["clip_text_edited"] == "up.0.0"
    lines = block_table(summary).splitlines()
    assert lines[2].count("too few differ") == 4 and lines[2].endswith("up.0.0")
    assert sum(line.startswith("No interval, too few differ: fewer than 2 edits differ") for line in lines) == 1
    json.dumps(summary, allow_nan=False)


def test_a_category_without_a_valid_case_is_reported_as_such():
    rows = make_scores({"alone": PLANTED["alone"], "nothing": PLANTED["nothing"]}, num_edits=2).to_dict("records")
    rows = [fail(row, "empty mask") if row["category"] == "nothing" else row for row in rows]
    summary = summarise(pd.DataFrame(rows), BLOCKS, resamples=50)
    assert summary["categories"]["nothing"] == {
        "planned": 4,
        "failed": {"empty mask": 4},
        "edits": 0,
        "cases": 0,
        "dominant": {},
    }
    assert summary["dominance"][0]["categories"]["nothing"]["effects"] == {}
    assert {score for row in summary["methods_by_category"]["nothing"] for score in row["scores"].values()} == {None}
    assert "no valid case" in block_table(summary)
    assert set(dominance_over([("run", summary)])["category"]) == {"alone", "all"}


def test_a_setting_that_always_fails_is_left_out_and_named():
    rows = make_scores({"alone": PLANTED["alone"]}, num_edits=2).to_dict("records")
    rows = [fail(row, "no weights") if row["method"] == "dense" else row for row in rows]
    summary = summarise(pd.DataFrame(rows), BLOCKS, resamples=50)
    assert summary["left_out"] == [{"method": "dense", "strength": 1.0, "blocks": WHOLE, "reason": "no weights"}]
    assert summary["overall"]["cases"] == 4


def test_no_valid_case_is_an_error_with_the_reason():
    rows = make_scores({"alone": PLANTED["alone"]}, num_edits=1, seeds=(0, 1)).to_dict("records")
    rows = [fail(row, "empty mask") if (row["seed"] == 0) == (row["method"] == "dense") else row for row in rows]
    with pytest.raises(UserError, match="no case is valid.*empty mask"):
        summarise(pd.DataFrame(rows), BLOCKS, resamples=50)
    with pytest.raises(UserError, match="noop"):
        summarise(pd.DataFrame([row for row in rows if row["method"] != "noop"]), BLOCKS, resamples=50)


def test_an_empty_score_names_its_row():
    frame = make_scores({"alone": PLANTED["alone"]}, num_edits=2)
    frame.loc[(frame["edit"] == "alone-1") & (frame["method"] == "dense"), "lpips_original"] = math.nan
    with pytest.raises(UserError, match="alone-1 .seed 0. under dense x1 .* lacks lpips_original"):
        summarise(frame, BLOCKS)


def test_mixed_backbones_are_refused():
    frame = make_scores({"alone": PLANTED["alone"]}, num_edits=1)
    frame.loc[0, "steps"] = 4
    with pytest.raises(UserError, match="mix 2"):
        summarise(frame, BLOCKS)


# ---- the table


def test_without_every_subset_there_are_no_effects():
    frame = make_scores({"alone": PLANTED["alone"]}, num_edits=2)
    summary = summarise(frame[frame["blocks"] != "mid.0"], BLOCKS, resamples=50)
    assert (summary["dominance"], summary["values"], summary["categories"]["alone"]["dominant"]) == ([], [], {})
    assert "not measured" in block_table(summary)


def test_block_table_shows_every_category_within_its_width(summary):
    text = block_table(summary)
    lines = text.splitlines()
    assert max(map(len, lines)) <= 110
    assert [line.split()[0] for line in lines[1:6]] == ["category", "alone", "together", "nothing", "all"]
    assert lines[2].endswith("up.0.0") and lines[3].endswith("blocks share it")
    assert lines[4].endswith("no block has an effect")
    assert lines[6] == "Where no block is named, the blocks are not separable:"
    assert lines[7].startswith("  blocks share it (together): compare their solo and leave-one-out effects")
    assert "  no block has an effect (nothing): try a greater strength" in text
    shapley = summary["dominance"][0]["categories"]["alone"]["effects"]["clip_text_edited"]["up.0.0"]["shapley"]
    assert f"{100 * shapley['mean']:+.1f} [{100 * shapley['low']:.1f},{100 * shapley['high']:.1f}]" in lines[2]


@pytest.mark.parametrize("broken", [{}, {"overall": 3}, {"overall": {}, "categories": {}, "dominance": None}, []])
def test_what_is_no_summary_is_refused(broken):
    with pytest.raises(UserError, match="not a run's summary"):
        load_summary(broken)


def test_a_summary_is_taken_as_it_is(summary):
    assert load_summary(summary) is summary
