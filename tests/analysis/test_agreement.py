"""Whether the metrics agree with the oracle: against scipy on samples written out, and against planted truths."""

from __future__ import annotations

import itertools
import json
import math
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from planted import fail, make_row

from riebench.analysis import agreement_of_run, agreement_tables, read_scores, write_scores
from riebench.analysis.agreement import MEASURES, RESULT_SETS, TRUTHS, measure_agreement, rank_agreement
from riebench.cli import main
from riebench.core.errors import UserError
from riebench.core.files import MARKER, write_json


def scipy_auroc(score, positive):
    if positive.all() or not positive.any():
        return math.nan
    u = scipy.stats.mannwhitneyu(score[positive], score[~positive]).statistic
    return u / (positive.sum() * (~positive).sum())


def scipy_spearman(score, truth):
    if len(set(score)) < 2 or len(set(truth)) < 2:
        return math.nan
    return scipy.stats.spearmanr(score, truth).statistic


# ---- the statistics


@pytest.mark.parametrize("truths", [[0.0, 1.0], [0.0, 3 / 7, 5 / 7, 1.0], [1.0], [0.0, 0.5]])
@pytest.mark.parametrize("num_scores", [1, 4, 1000])  # one: all tied
def test_resamples_are_those_of_the_sample_written_out(truths, num_scores):
    rng = np.random.default_rng(num_scores)
    edit = rng.integers(0, 9, 70)
    score = rng.integers(0, num_scores, 70) / 8 - 0.0
    truth = rng.choice(truths, 70)
    counts = rng.multinomial(9, np.full(9, 1 / 9), size=50)
    counts[7] = [9, *[0] * 8]
    counts[8] = 0  # nothing was drawn that has results
    spearman, auroc = rank_agreement(score, truth, edit, counts)
    assert spearman.shape == auroc.shape == (50,)
    for r, row in enumerate(counts):
        drawn = np.repeat(np.arange(70), row[edit])
        assert spearman[r] == pytest.approx(scipy_spearman(score[drawn], truth[drawn]), abs=1e-12, nan_ok=True)
        assert auroc[r] == pytest.approx(scipy_auroc(score[drawn], truth[drawn] == 1), abs=1e-12, nan_ok=True)


def test_auroc_is_the_share_of_pairs_in_order_with_ties_half():
    score, truth = np.array([0.3, 0.1, 0.1, 0.2, -0.4]), np.array([1.0, 1.0, 0.0, 0.0, 0.0])
    # pairs of (.3 and each of .1 .2 -.4): 3 of 3; (.1 and each): tie, lost, won
    _, (auroc,) = rank_agreement(score, truth, np.arange(5), np.ones((1, 5), dtype=np.int64))
    assert auroc == pytest.approx((3 + 0.5 + 0 + 1) / 6)


def test_a_monotone_change_of_the_score_changes_nothing():
    rng = np.random.default_rng(1)
    score, truth, edit = rng.normal(size=60), rng.integers(0, 2, 60).astype(float), rng.integers(0, 6, 60)
    counts = rng.multinomial(6, np.full(6, 1 / 6), size=20)
    np.testing.assert_array_equal(
        rank_agreement(score, truth, edit, counts), rank_agreement(np.exp(3 * score), truth, edit, counts)
    )
    negated = rank_agreement(-score, truth, edit, counts)
    np.testing.assert_allclose(negated[0], -rank_agreement(score, truth, edit, counts)[0])
    np.testing.assert_allclose(negated[1], 1 - rank_agreement(score, truth, edit, counts)[1])


def test_intervals_over_edits_hold_chance_at_about_their_level():
    rng = np.random.default_rng(5)
    edit = np.repeat(np.arange(40), 6)
    held = []
    for _ in range(150):  # score and truth go together within an edit, not with each other
        score = rng.normal(size=40)[edit] + rng.normal(size=240)
        truth = (rng.normal(size=40)[edit] + rng.normal(size=240) > 0.5).astype(float)
        _, auroc = rank_agreement(score, truth, edit, rng.multinomial(40, np.full(40, 1 / 40), size=300))
        low, high = np.quantile(auroc, [0.025, 0.975])
        held.append(low <= 0.5 <= high)
    assert 0.88 <= np.mean(held) <= 0.99


# ---- a run with planted truths

METHODS = ("oracle-prompt", "sae", "dense", "random")


def make_results(*, categories=("colour", "pose"), num_edits=8, seeds=(0, 1), generator_seed=0):
    """Scores in which CLIP's gain tells success exactly, its level does not, and LPIPS tells preservation exactly."""
    rng = np.random.default_rng(generator_seed)
    rows = []
    for category, edit, seed in itertools.product(categories, range(num_edits), seeds):
        case, level = (f"{category}-{edit}", category, seed), rng.normal(0, 5)
        noop = {"clip_text_edited": level, "clip_directional": math.nan, "oracle_preservation": 1.0}
        rows.append(make_row(*case, "noop", strength=0.0, **noop))
        for method in METHODS:
            success, kept = float(method == "oracle-prompt" or rng.random() < 0.4), rng.integers(4, 8) / 7
            cells = {
                "clip_text_edited": level + success + rng.uniform(-0.4, 0.4),
                "clip_directional": rng.uniform(-1, 1),
                "lpips_original": 1 - kept + rng.uniform(0, 0.1),
                "lpips_outside": rng.uniform(),
            }
            rows.append(make_row(*case, method, **cells, oracle_success=success, oracle_preservation=kept))
    return pd.DataFrame(rows)


def value(found, measure, truth, statistic, group="all results", category=None):
    of_set = found["sets"][group]
    row = of_set["overall"] if category is None else of_set["categories"][category]
    return row["agreement"][measure][truth][statistic]


@pytest.fixture(scope="module")
def results():
    return make_results()


@pytest.fixture(scope="module")
def found(results):
    return {"run": "planted", **measure_agreement(results, resamples=300)}


def test_what_tells_the_truth_is_found_to(found):
    for category in (None, "colour", "pose"):
        assert value(found, "clip_gain", "oracle_success", "auroc", category=category)["value"] == 1.0
        assert value(found, "lpips_original", "oracle_preservation", "auroc", category=category)["value"] == 1.0
    assert value(found, "lpips_original", "oracle_preservation", "spearman")["value"] > 0.95
    assert 0.35 < value(found, "clip_directional", "oracle_success", "auroc")["value"] < 0.65


def test_every_pair_is_scipys_on_the_rows_that_count(results, found):
    noop = results[results.method == "noop"].set_index(["edit", "seed"]).clip_text_edited
    rows = results[results.method != "noop"].join(noop.rename("zero"), on=["edit", "seed"])
    measures = {
        "clip_gain": rows.clip_text_edited - rows.zero,
        "clip_directional": rows.clip_directional,
        "lpips_original": -rows.lpips_original,
        "lpips_outside": -rows.lpips_outside,
    }
    assert set(measures) == {measure.name for measure in MEASURES}
    for group, without in (("all results", []), ("interventions", ["oracle-prompt"])):
        for category in (None, "colour", "pose"):
            use = ~rows.method.isin(without) & ((rows.category == category) | (category is None))
            of_set = found["sets"][group]
            row = of_set["overall"] if category is None else of_set["categories"][category]
            assert (row["results"], row["edits"]) == (use.sum(), rows[use].edit.nunique())
            for (name, score), truth in itertools.product(measures.items(), TRUTHS):
                truths, cell = rows[use][truth.name].to_numpy(), row["agreement"][name][truth.name]
                assert row["shares"][truth.name] == pytest.approx((truths == 1).mean())
                assert (cell["results"], cell["edits"]) == (use.sum(), rows[use].edit.nunique())
                score_n = score[use].to_numpy()
                assert cell["auroc"]["value"] == pytest.approx(scipy_auroc(score_n, truths == 1))
                assert cell["spearman"]["value"] == pytest.approx(scipy_spearman(score_n, truths))


@pytest.mark.slow
def test_intervals_are_those_of_a_slow_bootstrap_of_edits(results):
    pose = results[results.category == "pose"]
    ours = value(measure_agreement(pose, resamples=4000, seed=3), "lpips_outside", "oracle_success", "auroc")
    rows = pose[pose.method != "noop"]
    score, positive = -rows.lpips_outside.to_numpy(), rows.oracle_success.to_numpy() == 1
    of_edit = [np.flatnonzero(rows.edit == edit) for edit in rows.edit.unique()]
    rng = np.random.default_rng(11)
    slow = []
    for _ in range(4000):
        drawn = np.concatenate([of_edit[i] for i in rng.integers(0, len(of_edit), len(of_edit))])
        won, lost = score[drawn][positive[drawn]], score[drawn][~positive[drawn]]
        slow.append(np.mean(np.sign(np.subtract.outer(won, lost)) / 2 + 0.5))
    low, high = np.quantile(slow, [0.025, 0.975])
    assert ours["low"] == pytest.approx(low, abs=0.05 * (high - low))
    assert ours["high"] == pytest.approx(high, abs=0.05 * (high - low))


def test_further_seeds_that_say_the_same_add_no_certainty(results):
    again = results.assign(seed=results.seed + 100)
    one, two = (measure_agreement(frame, resamples=200) for frame in (results, pd.concat([results, again])))
    for name, statistic in (("clip_directional", "auroc"), ("lpips_outside", "spearman")):
        a, b = (value(found, name, "oracle_success", statistic) for found in (one, two))
        assert a["high"] - a["low"] > 0.05
        assert [a[key] for key in ("value", "low", "high")] == pytest.approx(
            [b[key] for key in ("value", "low", "high")]
        )


def test_what_is_left_out(results, found):
    per_edit = 2  # seeds
    assert found["sets"]["all results"]["overall"]["results"] == 16 * per_edit * len(METHODS)
    assert found["sets"]["interventions"]["overall"]["results"] == 16 * per_edit * (len(METHODS) - 1)
    assert RESULT_SETS == {"all results": ("noop",), "interventions": ("noop", "oracle-prompt")}
    rows = results.to_dict("records")
    at = next(i for i, row in enumerate(rows) if row["method"] == "dense")
    rows[at] = fail(rows[at], "the image holds NaN")
    row = measure_agreement(pd.DataFrame(rows), resamples=20)["sets"]["all results"]["overall"]
    assert row["results"] == 16 * per_edit * len(METHODS) - 1


def test_a_case_without_its_zero_has_no_gain_but_its_other_scores(results):
    without = results[~((results.method == "noop") & (results.edit == "pose-0") & (results.seed == 0))]
    row = measure_agreement(without, resamples=20)["sets"]["all results"]["overall"]["agreement"]
    assert row["clip_gain"]["oracle_success"]["results"] == 128 - len(METHODS)
    assert row["lpips_original"]["oracle_success"]["results"] == 128


# ---- what is undefined


def test_one_class_a_constant_score_and_a_missing_one_are_said_to_be_so(results):
    odd = results.copy()
    colour, pose = odd.category == "colour", odd.category == "pose"
    odd.loc[colour & (odd.method != "oracle-prompt"), "oracle_success"] = 0.0
    odd.loc[pose, "oracle_success"] = 1.0
    odd.loc[pose, "lpips_outside"] = math.nan
    odd.loc[pose, "lpips_original"] = 0.25
    odd.loc[colour, "oracle_preservation"] = odd[colour].oracle_preservation.clip(upper=6 / 7)
    found = {"run": "odd", **measure_agreement(odd, resamples=50)}

    def undefined(measure, truth, statistic, category, group="interventions"):
        cell = value(found, measure, truth, statistic, group, category)
        assert (cell["value"] is None) == (cell["low"] is None) == (cell["undefined"] != "")
        return cell["undefined"]

    for statistic in ("auroc", "spearman"):
        assert undefined("clip_gain", "oracle_success", statistic, "colour") == "none succeeded"
        assert undefined("clip_gain", "oracle_success", statistic, "colour", "all results") == ""
        assert undefined("clip_gain", "oracle_success", statistic, "pose") == "all succeeded"
        assert undefined("lpips_outside", "oracle_preservation", statistic, "pose") == "no result has it"
    # no result keeps everything, yet the shares can be ranked
    assert undefined("lpips_original", "oracle_preservation", "auroc", "colour") == "none kept the rest"
    assert undefined("lpips_original", "oracle_preservation", "spearman", "colour") == ""
    # a constant score ranks nothing: its pairs are all tied
    assert undefined("lpips_original", "oracle_preservation", "spearman", "pose") == "constant score"
    assert value(found, "lpips_original", "oracle_preservation", "auroc", category="pose")["value"] == 0.5

    json.dumps(found, allow_nan=False)
    lines = [line for line in agreement_tables(found).splitlines() if line.count("none kept the rest") == 4]
    assert len(lines) == 2 and all(line.startswith("| colour ") for line in lines)  # the AUROC in either set


@pytest.mark.slow
def test_an_interval_needs_two_edits_and_resamples_with_both_classes():
    single = measure_agreement(make_results(num_edits=1, categories=("pose",)), resamples=50)
    cell = value(single, "clip_gain", "oracle_success", "auroc")
    assert (cell["value"], cell["low"], cell["high"], cell["undefined"]) == (1.0, None, None, "")

    def with_successes_in(num):
        frame = make_results(categories=("pose",), num_edits=20).assign(oracle_success=0.0)
        chosen = frame.edit.isin([f"pose-{i}" for i in range(num)]) & (frame.method == "sae")
        frame.loc[chosen, "oracle_success"] = 1.0
        return value(measure_agreement(frame, resamples=400), "clip_directional", "oracle_success", "auroc")

    # the chance that a resample has none of them is (1 - num / 20)^20: .36, .12, .001
    assert with_successes_in(1)["value"] is not None and with_successes_in(1)["low"] is None
    assert with_successes_in(2)["low"] is None
    assert with_successes_in(6)["low"] is not None


def test_a_category_without_a_valid_result_keeps_its_row(results):
    rows = [fail(row, "no region") if row["category"] == "pose" else row for row in results.to_dict("records")]
    found = {"run": "r", **measure_agreement(pd.DataFrame(rows), resamples=20)}
    row = found["sets"]["all results"]["categories"]["pose"]
    assert (row["results"], row["edits"], row["shares"]) == (0, 0, {truth.name: None for truth in TRUTHS})
    assert row["agreement"]["clip_gain"]["oracle_success"]["auroc"]["undefined"] == "no result has it"
    json.dumps(found, allow_nan=False)
    assert "| pose     |       0 |         - |" in agreement_tables(found)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda frame: frame[frame.method != "noop"], "no valid result of method 'noop'"),
        (lambda frame: frame[frame.method == "noop"], "no valid result besides 'noop'"),
        (lambda frame: frame.assign(oracle_preservation=math.nan), "no result has oracle_preservation"),
        (lambda frame: frame.assign(steps=np.arange(len(frame))), "the scores mix"),
        (lambda frame: frame.drop(columns="clip_directional"), "columns missing: clip_directional"),
    ],
)
def test_scores_that_cannot_be_judged_say_why(results, change, message):
    with pytest.raises(UserError, match=message):
        measure_agreement(change(results), resamples=10)


# ---- tables and the command


def test_the_same_seed_gives_the_same_intervals(results, found):
    assert {"run": "planted", **measure_agreement(results, resamples=300)} == found
    other = measure_agreement(results, resamples=300, seed=1)
    cells = [value(one, "clip_directional", "oracle_success", "auroc") for one in (found, other)]
    assert cells[0]["value"] == cells[1]["value"] and cells[0]["low"] != cells[1]["low"]


def test_tables_hold_the_numbers_and_mark_what_is_meant(found):
    text = agreement_tables(found)
    blocks = [block.splitlines() for block in text.split("\n\n")]
    tables = [block for block in blocks if block[0].startswith("|")]
    assert len(tables) == 2 * len(TRUTHS) * len(RESULT_SETS)
    expected = iter(itertools.product(RESULT_SETS, TRUTHS, ("auroc", "spearman")))
    for table, (group, truth, statistic) in zip(tables, expected, strict=True):
        assert len({len(line) for line in table}) == 1  # the columns line up
        head, rule, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
        assert [cell.endswith(" *") for cell in head[3:]] == [m.meant_for == truth.name for m in MEASURES]
        assert set("".join(rule)) == {"-", ":"}
        assert [row[0] for row in rows] == ["colour", "pose", "all"]
        for row, category in zip(rows, ("colour", "pose", None), strict=True):
            for cell, measure in zip(row[3:], MEASURES, strict=True):
                one = value(found, measure.name, truth.name, statistic, group, category)
                numbers = [float(word.strip("[],")) for word in cell.split()]
                assert numbers == pytest.approx([one["value"], one["low"], one["high"]], abs=0.00501)


def test_a_number_that_rounds_to_zero_has_no_sign(found):
    again = json.loads(json.dumps(found))
    cell = value(again, "clip_gain", "oracle_success", "spearman")
    cell.update(value=-0.001, low=-0.25, high=0.004)
    assert " 0.00 [-0.25, 0.00] |" in agreement_tables(again)


@pytest.mark.slow
def test_a_run_that_is_not_finished_is_refused(tmp_path, results, capsys, monkeypatch):
    write_scores(results, tmp_path / "scores.parquet")
    with pytest.raises(UserError, match="is no run directory"):
        agreement_of_run(tmp_path)
    (tmp_path / MARKER).touch()
    with pytest.raises(UserError, match="does not exist"):
        agreement_of_run(tmp_path)
    write_json(tmp_path / "manifest.json", {"status": "running"})
    with pytest.raises(UserError, match="not finished"):
        agreement_of_run(tmp_path)
    write_json(tmp_path / "manifest.json", {"status": "finished"})
    monkeypatch.chdir(tmp_path)
    assert main(["agreement", "."]) == 0
    found = agreement_of_run(tmp_path)
    assert found["run"] == tmp_path.name
    assert capsys.readouterr().out == agreement_tables(found) + "\n"


@pytest.mark.process
def test_importing_the_analysis_imports_no_torch():
    code = "import sys, riebench.analysis.agreement\nassert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.slow
def test_the_command_on_a_small_run(small_run, tmp_path, capsys):
    assert main(["agreement", str(small_run.folder), "--json", "--out", str(tmp_path / "tables.md")]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (tmp_path / "tables.md").read_text() == agreement_tables(found) + "\n"
    assert found["run"] == small_run.folder.name and found["backbone"] == "tinyworld-turbo@1"

    scores = read_scores(small_run.folder / "scores.parquet")
    scores = scores[scores.status == "ok"]
    noop = scores[scores.method == "noop"].set_index(["edit", "seed"])
    assert noop.clip_directional.isna().all()
    rows = scores[scores.method != "noop"]
    gain = (
        rows.clip_text_edited.to_numpy() - noop.clip_text_edited.loc[zip(rows.edit, rows.seed, strict=True)].to_numpy()
    )
    success = rows.oracle_success.to_numpy() == 1
    expected = scipy_auroc(gain, success)
    assert value(found, "clip_gain", "oracle_success", "auroc")["value"] == pytest.approx(expected)
    changed = rows.clip_directional.notna().to_numpy()
    cell = found["sets"]["all results"]["overall"]["agreement"]["clip_directional"]["oracle_success"]
    assert cell["results"] == changed.sum()
    expected = scipy_auroc(rows.clip_directional.to_numpy()[changed], success[changed])
    assert cell["auroc"]["value"] == pytest.approx(expected)
