"""The analysis, against planted truths, brute force and scipy."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from riebench.analysis import block_table, read_scores, summarise, write_scores
from riebench.analysis.dominance import (
    MIN_EDITS,
    NOT_SEPARABLE,
    dominance,
    leave_one_out_weights,
    shapley_weights,
    solo_weights,
    subset_names,
)
from riebench.analysis.frames import (
    BEFORE,
    COLUMNS,
    METRICS_KEY,
    SCORES,
    Score,
    Setting,
    describe_scores,
    scores_of,
    validate_scores,
)
from riebench.analysis.statistics import (
    bootstrap_intervals,
    bootstrap_weights,
    edit_means,
    holm,
    sign_flip_p,
    valid_cases,
)
from riebench.errors import UserError

BLOCKS = ("down.2.1", "mid.0", "up.0.0", "up.0.1")


def make_row(edit, category, seed, method, blocks="", strength=1.0, **cells):
    row = {name: "" if dtype is str else dtype(0) for name, dtype in COLUMNS.items()}
    row |= {score.name: 0.0 for score in SCORES}
    row |= {"edit": edit, "category": category, "seed": seed, "method": method, "blocks": blocks}
    row |= {"strength": strength, "backbone": "tinyworld-turbo@1", "steps": 1, "status": "ok", "mode": "strict"}
    return row | cells


def fail(row, reason):
    return row | {"status": "failed", "reason": reason} | {score.name: math.nan for score in SCORES}


def make_scores(worth, *, num_edits=12, seeds=(0, 1), noise=0.02, blocks=BLOCKS, generator_seed=0):
    """Scores of a run in which intervening on the set S in `category` gains worth[category](S), plus noise."""
    rng = np.random.default_rng(generator_seed)
    rows = []

    def add(case, base, method, names, gain, cost, **cells):
        scores = {"clip_text_edited": base + gain, "lpips_original": cost}
        rows.append(make_row(*case, method, names, **scores, **cells))

    for category, value in worth.items():
        for edit, seed in itertools.product(range(num_edits), seeds):
            at = (f"{category}-{edit}", category, seed), rng.normal(0.2, 0.05)  # the level, which pairing takes away
            add(*at, "noop", "", 0.0, 0.0, strength=0.0)
            add(*at, "oracle-prompt", "", 0.1, 0.5)
            add(*at, "dense", "+".join(blocks), 0.08 + rng.normal(0, noise), 0.3)
            for names in subset_names(blocks)[1:]:
                chosen = frozenset(names.split("+"))
                features = json.dumps({block: 10 * (i + 1) for i, block in enumerate(blocks) if block in chosen})
                gain = value(chosen) + rng.normal(0, noise)
                add(*at, "sae", names, gain, 0.1 * len(chosen), features=features)
    return pd.DataFrame(rows)


# ---- statistics


def test_holm_by_hand():
    # sorted .005 .01 .03 .04 -> x4 .02, x3 .03, x2 .06, x1 .04 raised to .06
    assert holm(np.array([0.01, 0.04, 0.03, 0.005])) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm(np.array([0.6, 0.7])) == pytest.approx([1.0, 1.0])


def test_bootstrap_weights_count_whole_edits():
    weights = bootstrap_weights(5, 10_000, np.random.default_rng(0))
    assert weights.shape == (10_000, 5)
    assert np.allclose(weights.sum(axis=1), 1)
    assert np.allclose(weights * 5, np.round(weights * 5))
    assert weights.mean(axis=0) == pytest.approx([0.2] * 5, abs=0.01)


def test_bootstrap_interval_agrees_with_scipy():
    values = np.random.default_rng(3).exponential(size=(25, 2))
    intervals = bootstrap_intervals(values, bootstrap_weights(25, 10_000, np.random.default_rng(0)))
    theirs = scipy.stats.bootstrap((values,), np.mean, n_resamples=10_000, method="percentile", axis=0, rng=1)
    width = theirs.confidence_interval.high - theirs.confidence_interval.low
    for k, ours in enumerate(intervals):
        assert ours.mean == pytest.approx(values[:, k].mean())
        assert abs(ours.low - theirs.confidence_interval.low[k]) < 0.05 * width[k]
        assert abs(ours.high - theirs.confidence_interval.high[k]) < 0.05 * width[k]


def test_two_edits_by_hand():
    # resampled means of {0, 1}: 0 with 1/4, 1/2 with 1/2, 1 with 1/4
    (interval,) = bootstrap_intervals(np.array([[0.0], [1.0]]), bootstrap_weights(2, 4000, np.random.default_rng(0)))
    assert (interval.low, interval.mean, interval.high) == (0.0, 0.5, 1.0)
    (narrow,) = bootstrap_intervals(
        np.array([[0.0], [1.0]]), bootstrap_weights(2, 4000, np.random.default_rng(0)), level=0.4
    )
    assert (narrow.low, narrow.high) == (0.5, 0.5)


def test_bootstrap_covers_at_about_its_level():
    rng = np.random.default_rng(0)
    samples = rng.normal(size=(40, 1000))  # a thousand experiments of forty edits, true mean 0
    intervals = bootstrap_intervals(samples, bootstrap_weights(40, 2000, rng))
    coverage = np.mean([interval.low <= 0 <= interval.high for interval in intervals])
    assert 0.91 < coverage < 0.97


def test_sign_flip_agrees_with_scipy_and_cannot_reject_one_edit():
    values = np.random.default_rng(5).normal(0.4, 1, size=(14, 1))
    theirs = scipy.stats.permutation_test(
        (values[:, 0],), np.mean, permutation_type="samples", n_resamples=np.inf
    ).pvalue
    (ours,) = sign_flip_p(values, 20_000, np.random.default_rng(0))
    assert ours == pytest.approx(theirs, abs=0.015)
    assert sign_flip_p(np.array([[3.0]]), 1000, np.random.default_rng(0)) == pytest.approx([1.0])


def test_seeds_are_averaged_inside_an_edit():
    index = pd.MultiIndex.from_tuples([("c", "a", 0), ("c", "a", 1), ("c", "b", 0)], names=["category", "edit", "seed"])
    means = edit_means(pd.DataFrame({"x": [1.0, 3.0, 10.0]}, index=index))
    assert means["x"].to_dict() == {("c", "a"): 2.0, ("c", "b"): 10.0}


def test_valid_cases_are_the_intersection_and_failures_keep_their_reasons():
    settings = [Setting("noop", 0.0, ""), Setting("dense", 1.0, "mid.0")]
    rows = [
        make_row("a", "c", 0, "noop", strength=0.0),
        make_row("a", "c", 0, "dense", "mid.0"),
        make_row("b", "c", 0, "noop", strength=0.0),
        fail(make_row("b", "c", 0, "dense", "mid.0"), "empty mask"),
        make_row("d", "e", 0, "noop", strength=0.0),
        fail(make_row("d", "e", 0, "another", "mid.0"), "is not asked about"),
    ]
    valid = valid_cases(validate_scores(pd.DataFrame(rows)), settings)
    assert list(valid.cases) == [("c", "a", 0)]
    assert valid.failures() == {"c": {"empty mask": 1}, "e": {"not run": 1}}


# ---- dominance


def brute_shapley(value, blocks):
    """Average marginal gain over all orders in which the blocks can arrive."""
    orders = list(itertools.permutations(blocks))
    total = dict.fromkeys(blocks, 0.0)
    for order in orders:
        for i, block in enumerate(order):
            total[block] += value(frozenset(order[: i + 1])) - value(frozenset(order[:i]))
    return [total[block] / len(orders) for block in blocks]


@pytest.mark.parametrize("num_blocks", [1, 2, 3, 4])
def test_effects_against_the_definition_over_orders(num_blocks):
    blocks = BLOCKS[:num_blocks]
    draws = np.random.default_rng(num_blocks).normal(size=1 << num_blocks)
    draws[0] = 0.0
    by_set = {frozenset(name.split("+")) - {""}: v for name, v in zip(subset_names(blocks), draws, strict=True)}
    every = frozenset(blocks)
    assert draws @ shapley_weights(num_blocks) == pytest.approx(brute_shapley(by_set.get, blocks))
    assert draws @ solo_weights(num_blocks) == pytest.approx([by_set[frozenset({b})] for b in blocks])
    assert draws @ leave_one_out_weights(num_blocks) == pytest.approx(
        [by_set[every] - by_set[every - {b}] for b in blocks]
    )
    assert (draws @ shapley_weights(num_blocks)).sum() == pytest.approx(by_set[every])


PLANTED = {
    "alone": lambda s: 0.10 * ("up.0.0" in s),
    "together": lambda s: 0.10 * ({"down.2.1", "up.0.1"} <= s),
    "nothing": lambda s: 0.0,
}


@pytest.fixture(scope="module")
def summary():
    return summarise(make_scores(PLANTED), BLOCKS, resamples=2000)


def test_planted_effects_are_recovered(summary):
    alone, together, nothing = (
        summary["categories"][category]["effects"]["clip_text_edited"] for category in ("alone", "together", "nothing")
    )
    for effect in ("solo", "leave_one_out", "shapley"):
        assert alone["up.0.0"][effect]["mean"] == pytest.approx(0.10, abs=0.02)
        assert alone["mid.0"][effect]["mean"] == pytest.approx(0.0, abs=0.02)
        assert nothing["mid.0"][effect]["mean"] == pytest.approx(0.0, abs=0.02)
    for block in ("down.2.1", "up.0.1"):
        assert together[block]["solo"]["mean"] == pytest.approx(0.0, abs=0.02)
        assert together[block]["leave_one_out"]["mean"] == pytest.approx(0.10, abs=0.02)
        assert together[block]["shapley"]["mean"] == pytest.approx(0.05, abs=0.01)


def test_verdicts_of_planted_truths(summary):
    verdicts = {c: row["dominant"]["clip_text_edited"] for c, row in summary["categories"].items()}
    assert verdicts == {"alone": "up.0.0", "together": NOT_SEPARABLE, "nothing": NOT_SEPARABLE}
    assert summary["categories"]["alone"]["lead"]["clip_text_edited"]["low"] > 0


def test_shapley_values_sum_to_the_effect_of_all_blocks(summary):
    frame = make_scores(PLANTED)
    wide = frame[frame["category"] == "together"].pivot_table(
        index="edit", columns=["method", "blocks"], values="clip_text_edited"
    )
    whole = (wide["sae", "+".join(BLOCKS)] - wide["noop", ""]).mean()
    effects = summary["categories"]["together"]["effects"]["clip_text_edited"]
    assert sum(effects[block]["shapley"]["mean"] for block in BLOCKS) == pytest.approx(whole)


def test_cost_is_the_distance_to_the_original_and_share_the_published_count(summary):
    row = summary["overall"]["effects"]["lpips_original"]
    assert [row[block]["shapley"]["mean"] for block in BLOCKS] == pytest.approx([0.1] * 4)
    assert [row[block]["share"] for block in BLOCKS] == pytest.approx([0.1, 0.2, 0.3, 0.4])


def gains_of(values_es):
    index = pd.MultiIndex.from_tuples([("c", i, 0) for i in range(len(values_es))], names=["category", "edit", "seed"])
    return pd.DataFrame(values_es, index=index)


@pytest.mark.parametrize(
    ("solo", "num_edits", "verdict"),
    [
        ((0.3, 0.1), MIN_EDITS, "a"),
        ((0.3, 0.1), MIN_EDITS - 1, NOT_SEPARABLE),
        ((-0.1, -0.3), MIN_EDITS, NOT_SEPARABLE),  # the first of two that both do harm
        ((0.2, 0.2), MIN_EDITS, NOT_SEPARABLE),
    ],
)
def test_verdict_needs_a_lead_a_gain_and_enough_edits(solo, num_edits, verdict):
    values = np.tile([0.0, solo[0], solo[1], sum(solo)], (num_edits, 1))
    values[:, 1:] += np.linspace(-0.01, 0.01, num_edits)[:, None]
    result = dominance(gains_of(values), ("a", "b"), resamples=500, generator=np.random.default_rng(0))
    assert result.verdict == verdict


def test_one_block_has_no_rival():
    result = dominance(gains_of([[0.0, 0.5]] * 8), ("a",), resamples=50, generator=np.random.default_rng(0))
    assert result.effects["a"].shapley.mean == result.effects["a"].solo.mean == 0.5
    assert (result.verdict, result.lead) == (NOT_SEPARABLE, None)


def test_blocks_that_do_nothing_are_seldom_called_dominant():
    rng = np.random.default_rng(0)
    verdicts = []
    for _ in range(200):
        values = rng.normal(size=(MIN_EDITS, 16))
        values[:, 0] = 0
        verdicts.append(dominance(gains_of(values), BLOCKS, resamples=200, generator=rng).verdict)
    assert np.mean([verdict != NOT_SEPARABLE for verdict in verdicts]) <= 0.05


# ---- summary


def test_summary_is_plain_json_and_repeats(summary):
    again = summarise(make_scores(PLANTED), BLOCKS, resamples=2000)
    assert json.dumps(summary, allow_nan=False) == json.dumps(again, allow_nan=False)
    other = summarise(make_scores(PLANTED), BLOCKS, resamples=2000, seed=1)
    low = [
        s["categories"]["alone"]["effects"]["clip_text_edited"]["up.0.0"]["shapley"]["low"] for s in (summary, other)
    ]
    assert low[0] != low[1]


def test_methods_are_paired_with_the_noop(summary):
    by_name = {(row["method"], row["blocks"]): row for row in summary["methods"]}
    oracle, noop = by_name["oracle-prompt", ""], by_name["noop", ""]
    gain = oracle["gains"]["clip_text_edited"]
    # every case gains 0.1 exactly: paired, the interval has no width, though the scores themselves vary
    assert [gain["low"], gain["mean"], gain["high"]] == pytest.approx([0.1] * 3)
    assert oracle["scores"]["clip_text_edited"]["high"] - oracle["scores"]["clip_text_edited"]["low"] > 0.005
    assert gain["p_holm"] < 0.2
    assert by_name["sae", "mid.0"]["gains"]["clip_text_edited"]["p_holm"] == 1.0
    assert noop["gains"]["clip_text_edited"] is None
    assert oracle["edits"] == 36 and oracle["cases"] == 72


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


def test_one_edit_has_intervals_without_width_and_no_verdict():
    summary = summarise(make_scores({"alone": PLANTED["alone"]}, num_edits=1), BLOCKS, resamples=50)
    row = summary["categories"]["alone"]
    shapley = row["effects"]["clip_text_edited"]["up.0.0"]["shapley"]
    assert row["edits"] == 1
    assert shapley["low"] == pytest.approx(shapley["mean"]) and shapley["high"] == pytest.approx(shapley["mean"])
    assert row["dominant"]["clip_text_edited"] == NOT_SEPARABLE


def test_a_category_without_a_valid_case_is_reported_as_such():
    rows = make_scores({"alone": PLANTED["alone"], "nothing": PLANTED["nothing"]}, num_edits=2).to_dict("records")
    rows = [fail(row, "empty mask") if row["category"] == "nothing" else row for row in rows]
    summary = summarise(pd.DataFrame(rows), BLOCKS, resamples=50)
    assert summary["categories"]["nothing"] == {
        "planned": 4,
        "failed": {"empty mask": 4},
        "edits": 0,
        "cases": 0,
        "effects": {},
        "dominant": {},
        "lead": {},
    }
    assert "no valid case" in block_table(summary)


def test_a_setting_that_always_fails_is_left_out_and_named():
    rows = make_scores({"alone": PLANTED["alone"]}, num_edits=2).to_dict("records")
    rows = [fail(row, "no weights") if row["method"] == "dense" else row for row in rows]
    summary = summarise(pd.DataFrame(rows), BLOCKS, resamples=50)
    assert summary["left_out"] == [
        {"method": "dense", "strength": 1.0, "blocks": "+".join(BLOCKS), "reason": "no weights"}
    ]
    assert summary["overall"]["cases"] == 4


def test_no_valid_case_is_an_error_with_the_reason():
    rows = make_scores({"alone": PLANTED["alone"]}, num_edits=1, seeds=(0, 1)).to_dict("records")
    rows = [fail(row, "empty mask") if (row["seed"] == 0) == (row["method"] == "dense") else row for row in rows]
    with pytest.raises(UserError, match="no case is valid.*empty mask"):
        summarise(pd.DataFrame(rows), BLOCKS, resamples=50)
    with pytest.raises(UserError, match="noop"):
        summarise(pd.DataFrame([row for row in rows if row["method"] != "noop"]), BLOCKS, resamples=50)


def test_without_every_subset_there_are_no_effects():
    frame = make_scores({"alone": PLANTED["alone"]}, num_edits=2)
    summary = summarise(frame[frame["blocks"] != "mid.0"], BLOCKS, resamples=50)
    assert summary["dominance"] is None
    assert summary["categories"]["alone"]["effects"] == {}
    assert "not measured" in block_table(summary)


def test_scores_that_a_backbone_lacks_are_null():
    frame = make_scores({"alone": PLANTED["alone"]}, num_edits=2).assign(oracle_success=math.nan)
    summary = summarise(frame, BLOCKS, resamples=50)
    assert summary["values"] == ["clip_text_edited", "lpips_original"]
    assert summary["methods"][0]["scores"]["oracle_success"] is None
    json.dumps(summary, allow_nan=False)


def test_mixed_backbones_are_refused():
    frame = make_scores({"alone": PLANTED["alone"]}, num_edits=1)
    frame.loc[0, "steps"] = 4
    with pytest.raises(UserError, match="mix 2"):
        summarise(frame, BLOCKS)


def test_block_table_shows_every_category_within_its_width(summary):
    text = block_table(summary)
    lines = text.splitlines()
    assert max(map(len, lines)) <= 110
    assert [line.split()[0] for line in lines[1:]] == ["category", "alone", "together", "nothing", "all"]
    assert lines[2].endswith("up.0.0") and lines[3].endswith("not separable")
    shapley = summary["categories"]["alone"]["effects"]["clip_text_edited"]["up.0.0"]["shapley"]
    assert f"{100 * shapley['mean']:+.1f} [{100 * shapley['low']:.1f},{100 * shapley['high']:.1f}]" in lines[2]


# ---- frames


def test_scores_round_trip(tmp_path):
    frame = make_scores({"alone": PLANTED["alone"]}, num_edits=1)
    write_scores(frame.sample(frac=1, axis=1, random_state=0), tmp_path / "scores.parquet")
    back = read_scores(tmp_path / "scores.parquet")
    assert list(back.columns) == [*COLUMNS, *(score.name for score in SCORES)]
    pd.testing.assert_frame_equal(back, validate_scores(frame))
    assert [path.name for path in tmp_path.iterdir()] == ["scores.parquet"]


def test_results_of_older_versions_get_what_was_not_recorded_then():
    frame = make_scores({"alone": PLANTED["alone"]}, num_edits=1)
    old = validate_scores(frame.drop(columns=list(BEFORE), errors="ignore"))
    assert (old["dtype"] == "float32").all() and (old["window"] == "all").all() and (old["branch"] == "").all()
    mixed = validate_scores(old.assign(window=[None, *["last 2"] * (len(old) - 1)]))
    assert mixed["window"].tolist() == ["all", *["last 2"] * (len(old) - 1)]


def test_a_score_that_not_every_result_has_may_be_empty():
    frame = make_scores({"alone": PLANTED["alone"]}, num_edits=1)
    sometimes = [score.name for score in SCORES if not score.always]
    assert "clip_directional" in sometimes and "clip_text_edited" not in sometimes
    assert validate_scores(frame.assign(**dict.fromkeys(sometimes, math.nan)))[sometimes].isna().all().all()
    with pytest.raises(UserError, match="columns missing: lpips_original -> score the run again"):
        validate_scores(frame.drop(columns="lpips_original"))


def test_a_frame_says_what_its_scores_are_also_when_it_was_written_and_read(tmp_path):
    shiny = Score("shiny", "Shininess", "higher", "how shiny it is", bounds=(0.0, None), needs=("region",))
    frame = make_scores({"alone": PLANTED["alone"]}, num_edits=1).assign(shiny=1)
    assert [score.name for score in scores_of(frame)] == [score.name for score in SCORES]  # an older version's
    described = describe_scores(frame, [*SCORES[:6], shiny, Score("gone", "Gone", "lower", "not in the table")])
    write_scores(described, tmp_path / "scores.parquet")
    back = read_scores(tmp_path / "scores.parquet")
    assert scores_of(back) == (*SCORES[:6], shiny) and back["shiny"].dtype == float
    assert METRICS_KEY not in frame.attrs
    back.attrs[METRICS_KEY] = [{"name": "shiny"}]
    with pytest.raises(UserError, match="what the scores say of their metrics cannot be read"):
        scores_of(back)


def test_reading_what_is_missing_or_broken_says_so(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        read_scores(tmp_path / "none.parquet")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 but no more")
    with pytest.raises(UserError, match="cannot be read"):
        read_scores(tmp_path / "broken.parquet")
    make_scores({"a": PLANTED["alone"]}, num_edits=1).drop(columns=["reason", "mode"]).to_parquet(
        tmp_path / "old.parquet"
    )
    with pytest.raises(UserError, match="reason, mode"):
        read_scores(tmp_path / "old.parquet")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"status": "done"}, "unknown status"),
        ({"status": "failed"}, "without a reason"),
        ({"clip_text_edited": math.nan}, "lacks clip_text_edited"),
        ({"lpips_outside": math.inf}, "has lpips_outside inf"),
        ({"seed": "first"}, "not int"),
        ({"edit": None}, "empty values"),
        ({"edit": "a"}, "two rows"),
    ],
)
def test_bad_rows_are_refused(change, message):
    rows = [make_row("a", "c", 0, "noop"), make_row("b", "c", 0, "noop") | change]
    with pytest.raises(UserError, match=message):
        validate_scores(pd.DataFrame(rows))
