"""Comparing runs, against enumeration, hand-made differences and pandas."""

from __future__ import annotations

import csv
import itertools
import json
import math
import subprocess
import sys
from statistics import NormalDist

import numpy as np
import pandas as pd
import pytest

from riebench.analysis.compare import compare_runs
from riebench.analysis.compare_words import compare_table, write_compare
from riebench.analysis.frames import write_scores
from riebench.core.errors import UserError
from riebench.core.files import MARKER
from riebench.core.scores import COLUMNS, Score, describe_scores

BLOCKS = ("down.2.1", "up.0.1")
EVERY = "+".join(BLOCKS)
SCORED = ("clip_text_edited", "lpips_original")
DESCRIBED = (
    Score("clip_text_edited", "CLIP, edited prompt", "higher", "cosine", network="ViT-L-14 openai"),
    Score("lpips_original", "LPIPS to original", "lower", "distance", network="AlexNet", weights_sha256="ab" * 32),
)


def make_row(edit, category, seed, method, strength=1.0, blocks=EVERY, **cells):
    row = {name: "" if dtype is str else dtype(0) for name, dtype in COLUMNS.items()}
    row |= {"edit": edit, "category": category, "seed": seed, "method": method, "strength": strength}
    row |= {"blocks": blocks, "backbone": "tinyworld-turbo@1", "steps": 1, "status": "ok", "mode": "strict"}
    return row | dict.fromkeys(SCORED, 0.0) | {"dtype": "float32"} | cells


def make_frame(
    gains, *, categories=("change_pose", "change_style"), num_edits=8, seeds=(42, 43), noise=0.01, run_seed=0
):
    """gains: method -> (gain in CLIP, LPIPS), each a number or a function of the category."""
    rng = np.random.default_rng(run_seed)
    rows = []
    for category, number, seed in itertools.product(categories, range(num_edits), seeds):
        case, level = (f"{category}-{number}", category, seed), rng.normal(0.2, 0.1)
        rows.append(make_row(*case, "noop", 0.0, "", clip_text_edited=level))
        for method, (gain, cost) in gains.items():
            found = [value(category) if callable(value) else value for value in (gain, cost)]
            clip, lpips = (value + rng.normal(0, noise) for value in found)
            rows.append(make_row(*case, method, clip_text_edited=level + clip, lpips_original=lpips))
    return pd.DataFrame(rows)


def write_run(folder, frame, *, scores=DESCRIBED, **manifest):
    folder.mkdir(parents=True)
    words = {
        "status": "finished",
        "mode": "strict",
        "blocks": list(BLOCKS),
        "edits": {"count": 16, "sha256": "9c" * 32},
    }
    words |= {"setup": {"grounder": {"name": "tinyworld"}, "mask_rule": "touched"}} | manifest
    (folder / MARKER).touch()
    (folder / "manifest.json").write_text(json.dumps(words))
    write_scores(describe_scores(frame, scores) if scores else frame, folder / "scores.parquet")
    return folder


def cell(found, metric, category, method):
    (one,) = [c for c in found["cells"] if (c["metric"], c["category"], c["method"]) == (metric, category, method)]
    return one


@pytest.fixture(scope="module")
def gains():
    in_pose = lambda category: 0.2 if category == "change_pose" else 0.0  # noqa: E731
    return {"sae": (0.0, 0.3), "strong": (in_pose, 0.5), "gentle": (0.0, 0.1)}


@pytest.fixture(scope="module")
def run(tmp_path_factory, gains):
    return write_run(tmp_path_factory.mktemp("runs") / "one", make_frame(gains, num_edits=14))


@pytest.fixture(scope="module")
def found(run):
    return compare_runs([run], resamples=2000)


# ---- what is found


def test_planted_differences_are_found_and_no_others(found):
    assert found["against"] == "sae" and found["runs"] == ["one"]
    verdicts = {(c["metric"], c["category"], c["method"]): c["verdict"] for c in found["cells"]}
    assert verdicts["clip_text_edited", "change_pose", "strong"] == "better"
    assert verdicts["clip_text_edited", "change_style", "strong"] == "not separable"
    assert verdicts["clip_text_edited", "all", "gentle"] == "not separable"
    for category in ("all", "change_pose", "change_style"):
        assert verdicts["lpips_original", category, "strong"] == "worse"  # lower is better
        assert verdicts["lpips_original", category, "gentle"] == "better"
    assert len(verdicts) == 2 * 3 * 3  # metrics, categories with all, methods but the one compared with


def test_a_difference_is_the_mean_over_edits_of_the_means_over_seeds(run, found):
    frame = pd.read_parquet(run / "scores.parquet")
    for category in ("all", "change_pose"):
        rows = frame if category == "all" else frame[frame.category == category]
        means = rows.groupby(["method", "edit", "seed"]).clip_text_edited.mean().groupby(["method", "edit"]).mean()
        by_hand = (means["strong"] - means["sae"]).mean()
        one = cell(found, "clip_text_edited", category, "strong")
        assert one["difference"]["mean"] == pytest.approx(by_hand)
        assert one["difference"]["low"] < by_hand < one["difference"]["high"]
        assert one["mean"] - one["mean_against"] == pytest.approx(by_hand)


def test_p_is_that_of_all_sign_flips_after_holm(tmp_path):
    frame = make_frame({"sae": (0.0, 0.3), "near": (0.02, 0.3)}, num_edits=7, noise=0.03, categories=("change_pose",))
    found = compare_runs([write_run(tmp_path / "run", frame)], resamples=20_000, metrics=["clip_text_edited"])
    means = frame.groupby(["method", "edit"]).clip_text_edited.mean()
    exact = []
    for method in ("noop", "near"):
        difference = (means[method] - means["sae"]).to_numpy()
        flips = np.array(list(itertools.product((-1, 1), repeat=7))) @ difference
        exact.append((np.abs(flips) >= abs(difference.sum()) - 1e-12).mean())
    order = np.argsort(exact)
    adjusted = np.empty(2)  # one category: a cell stands twice, as it and as all, and is one test
    adjusted[order] = np.minimum(np.maximum.accumulate(np.sort(exact) * [2, 1]), 1)
    assert found["tests"] == 2
    for p, method in zip(adjusted, ("noop", "near"), strict=True):
        for category in ("all", "change_pose"):
            assert cell(found, "clip_text_edited", category, method)["p_holm"] == pytest.approx(p, abs=0.03)


def test_a_large_table_is_not_blind(tmp_path):
    """200 flips alone could not get 42 tests below 42/201 after Holm."""
    methods = {f"m{i}": (0.5 * i, 0.1) for i in range(8)}
    folder = write_run(tmp_path / "run", make_frame(methods, num_edits=14))
    found = compare_runs([folder], resamples=200, metrics=["clip_text_edited", "lpips_original"])
    assert sum(c["p_holm"] is not None for c in found["cells"]) >= 42
    assert cell(found, "clip_text_edited", "all", "m1")["verdict"] == "better"


def test_a_cell_says_the_same_whatever_else_is_compared(run, found):
    alone = compare_runs([run], resamples=2000, metrics=["lpips_original"])
    here, there = (cell(one, "lpips_original", "change_pose", "strong") for one in (alone, found))
    assert here["difference"] == there["difference"]


def test_a_metric_without_direction_is_higher_or_lower(tmp_path, gains):
    scores = [DESCRIBED[0], Score("lpips_original", "LPIPS", "neither", "distance", network="AlexNet")]
    found = compare_runs([write_run(tmp_path / "run", make_frame(gains), scores=scores)], resamples=2000)
    assert cell(found, "lpips_original", "all", "strong")["verdict"] == "higher"
    assert cell(found, "lpips_original", "all", "gentle")["verdict"] == "lower"


# ---- who is compared, and how many tests that is


def test_only_the_named_methods_are_compared_and_counted(tmp_path, gains):
    frame = make_frame(gains | {"other": (0.1, 0.2)}, num_edits=14)
    failed = (frame.method == "gentle") & (frame.edit == "change_pose-0")
    frame.loc[failed, ["status", "reason", *SCORED]] = ["failed", "empty mask", math.nan, math.nan]
    folder = write_run(tmp_path / "run", frame)
    found = compare_runs([folder], methods=["strong", "sae"], resamples=500)
    assert [m["label"] for m in found["methods"]] == ["sae", "strong"] and found["against"] == "sae"
    assert {c["method"] for c in found["cells"]} == {"strong"} and found["tests"] == len(found["cells"]) == 2 * 3
    assert found["overall"]["cases"] == 56  # a method that is not asked for costs no case
    alone = write_run(tmp_path / "alone", frame[frame.method.isin(["sae", "strong"])])
    without = compare_runs([alone], resamples=500)
    assert [c | {"against": ""} for c in without["cells"]] == [c | {"against": ""} for c in found["cells"]]
    assert "strong against `sae`" in compare_table(found) and "gentle" not in compare_table(found)


@pytest.mark.parametrize(
    ("methods", "against", "labels"),
    [
        (("strong", "gentle"), "sae", ["sae@1", "strong", "gentle"]),  # what they are compared with comes beside
        (("strong", "strong", "sae@2"), "", ["strong", "sae@2"]),
        (("sae",), "", ["sae@1", "sae@2"]),  # a name is the method at every strength
        (("noop", "gentle"), "", ["noop", "gentle"]),
        (("strong",), "strong", "only one method to compare, strong"),
        (("strng", "sae"), "", "no method 'strng'; did you mean 'strong'"),
        (("sae@3",), "", "no method 'sae@3'"),
    ],
)
def test_methods_are_named_as_in_the_table(tmp_path, gains, methods, against, labels):
    frame = make_frame(gains, num_edits=3)
    folder = write_run(tmp_path / "run", pd.concat([frame, frame[frame.method == "sae"].assign(strength=2.0)]))
    if isinstance(labels, str):
        with pytest.raises(UserError, match=labels):
            compare_runs([folder], methods=methods, against=against)
        return
    found = compare_runs([folder], methods=methods, against=against, resamples=50)
    assert sorted(m["label"] for m in found["methods"]) == sorted(labels)
    assert found["against"] not in {c["method"] for c in found["cells"]}


def test_a_cell_that_stands_twice_is_one_test(tmp_path, gains):
    """A score that one category alone has is the same over all categories, and a metric asked for twice is one."""
    frame = make_frame(gains, num_edits=8).assign(lpips_outside=lambda f: f.lpips_original)
    frame.loc[frame.category == "change_style", "lpips_outside"] = math.nan
    scores = [*DESCRIBED, Score("lpips_outside", "outside", "lower", "distance", always=False)]
    folder = write_run(tmp_path / "run", frame, scores=scores)
    found = compare_runs([folder], methods=["sae", "strong"], metrics=["lpips_outside"] * 2, resamples=200)
    assert len(found["metrics"]) == 1 and len(found["cells"]) == 3 and found["tests"] == 1
    one, other = (cell(found, "lpips_outside", category, "strong") for category in ("all", "change_pose"))
    assert one == other | {"category": "all", "dropped": one["dropped"]}
    assert cell(found, "lpips_outside", "change_style", "strong")["verdict"] == "not measured"
    difference = frame[frame.category == "change_pose"].pivot_table(
        index="edit", columns="method", values="lpips_outside"
    )
    assert (difference["strong"] > difference["sae"]).all()  # so p is the least of eight edits, once
    assert one["p_holm"] == pytest.approx(2 / 2**8)


def test_where_nothing_can_be_told_the_edits_that_would_be_needed_are(tmp_path):
    frame = make_frame({"sae": (0.0, 0.3), "mine": (0.01, 0.3)}, num_edits=12, noise=0.03, seeds=(1,))
    folder = write_run(tmp_path / "run", frame)
    found = compare_runs([folder], methods=["mine", "sae"], metrics=["clip_text_edited"], resamples=200)
    assert found["tests"] == 3
    one = cell(found, "clip_text_edited", "all", "mine")
    pairs = frame.pivot_table(index="edit", columns="method", values="clip_text_edited")
    difference = pairs["mine"] - pairs["sae"]
    reach = NormalDist().inv_cdf(1 - 0.05 / 3 / 2) + NormalDist().inv_cdf(0.8)
    by_power = math.ceil((reach * difference.std() / difference.mean()) ** 2)
    assert one["verdict"] == "not separable" and one["edits_needed"] == max(by_power, 25)
    table = compare_table(found)
    assert f"not separable; about {one['edits_needed']:,} edits" in table
    assert (
        "Nothing can be told from 24 edits. The nearest is mine on CLIP, edited prompt, which would need about" in table
    )
    assert "for a power of 80 % at p = 0.017, which is 0.05 over 3 tests, and at least 7" in table
    assert table.count("Nothing can be told") == 3


@pytest.mark.parametrize(
    ("num_edits", "verdict", "needed"), [(1, "one edit", 7), (6, "too few edits", 7), (7, "better", None)]
)
def test_too_few_edits_are_said_apart_from_no_difference(tmp_path, num_edits, verdict, needed):
    """With three tests the least p of six edits, 2^-5, times three is above 5 %, and that of seven is not."""
    frame = make_frame(
        {"sae": (0.0, 0.3), "mine": (1.0, 0.3)}, num_edits=num_edits, categories=("change_pose", "change_style")
    )
    folder = write_run(tmp_path / "run", frame)
    found = compare_runs([folder], methods=["mine", "sae"], metrics=["clip_text_edited"], resamples=200)
    one = cell(found, "clip_text_edited", "change_pose", "mine")
    if num_edits == 1:  # the two edits of all categories are the only test
        assert found["tests"] == 1 and needed == 7
        needed = 6
    assert (one["verdict"], one["edits_needed"]) == (verdict, needed)
    if needed:
        assert f"{verdict} (at least {needed} edits)" in compare_table(found) or f"about {needed}" in compare_table(
            found
        )


# ---- which cases count


def test_failures_are_left_out_for_all_and_counted(tmp_path, gains):
    frame = make_frame(gains)
    failed = (frame.method == "gentle") & (frame.edit == "change_pose-0") & (frame.seed == 43)
    frame.loc[failed, ["status", "reason", *SCORED]] = ["failed", "empty mask", math.nan, math.nan]
    scores = [Score(s.name, s.label, s.better, s.meaning, network=s.network) for s in DESCRIBED]
    found = compare_runs([write_run(tmp_path / "run", frame, scores=scores)], resamples=500)
    assert found["categories"]["change_pose"] == {"planned": 16, "cases": 15, "edits": 8, "failed": {"empty mask": 1}}
    assert found["overall"] == {"planned": 32, "cases": 31, "edits": 16, "failed": {"empty mask": 1}}
    assert cell(found, "clip_text_edited", "all", "strong")["cases"] == 31
    assert "1 empty mask" in compare_table(found)
    assert "so few edits, no p is below 0.0078 before Holm" in compare_table(found)  # 2 of the 2^8 ways to flip 8 signs


def test_a_case_on_which_a_metric_is_undefined_is_dropped_from_its_pairs_alone(tmp_path, gains):
    frame = make_frame(gains).assign(lpips_outside=lambda f: f.lpips_original)
    frame.loc[(frame.method == "strong") & (frame.edit == "change_pose-0"), "lpips_outside"] = math.nan
    scores = [*DESCRIBED, Score("lpips_outside", "outside", "lower", "distance", always=False)]
    found = compare_runs([write_run(tmp_path / "run", frame, scores=scores)], resamples=500)
    one, other = (cell(found, "lpips_outside", "change_pose", method) for method in ("strong", "gentle"))
    assert (one["dropped"], one["cases"], one["edits"]) == (2, 14, 7)
    assert (other["dropped"], other["cases"], other["edits"]) == (0, 16, 8)
    kept = frame[(frame.category == "change_pose") & (frame.edit != "change_pose-0")]
    means = kept.groupby("method").lpips_outside.mean()
    assert one["difference"]["mean"] == pytest.approx(means["strong"] - means["sae"])
    assert "(2 undefined)" in compare_table(found)


def test_one_edit_has_no_verdict(tmp_path, gains):
    pair = [
        make_frame(gains, categories=("change_pose",), num_edits=1),
        make_frame(gains, categories=("change_style",), num_edits=14),
    ]
    found = compare_runs([write_run(tmp_path / "run", pd.concat(pair))], resamples=500)
    one = cell(found, "lpips_original", "change_pose", "strong")
    assert (one["edits"], one["verdict"], one["p_holm"]) == (1, "one edit", None)
    assert one["difference"]["low"] is None and one["difference"]["mean"] == pytest.approx(0.2, abs=0.05)
    assert cell(found, "lpips_original", "change_style", "strong")["verdict"] == "worse"
    json.dumps(found, allow_nan=False)
    assert "one edit" in compare_table(found)


def test_no_valid_case_names_the_reason(tmp_path, gains):
    frame = make_frame(gains)
    halves = (frame.seed == 42) & (frame.method == "gentle") | (frame.seed == 43) & (frame.method == "strong")
    frame.loc[halves, ["status", "reason", *SCORED]] = ["failed", "nothing found", math.nan, math.nan]
    with pytest.raises(UserError, match="no case is valid.* 32 of 32 cases, is 'nothing found'"):
        compare_runs([write_run(tmp_path / "run", frame)])


def test_a_category_without_a_valid_case_has_no_numbers(tmp_path, gains):
    frame = make_frame(gains)
    lost = (frame.category == "change_style") & (frame.method == "gentle")
    frame.loc[lost, ["status", "reason", *SCORED]] = ["failed", "empty mask", math.nan, math.nan]
    found = compare_runs([write_run(tmp_path / "run", frame)], resamples=500)
    assert found["categories"]["change_style"] == {"planned": 16, "cases": 0, "edits": 0, "failed": {"empty mask": 16}}
    one = cell(found, "lpips_original", "change_style", "strong")
    assert (one["mean"], one["difference"], one["verdict"]) == (None, None, "not measured")
    assert "0 of 16 cases" in compare_table(found)
    json.dumps(found, allow_nan=False)


def test_a_method_that_always_failed_is_left_out_and_named(tmp_path, gains):
    frame = make_frame(gains)
    frame.loc[frame.method == "gentle", ["status", "reason", *SCORED]] = ["failed", "too large", math.nan, math.nan]
    found = compare_runs([write_run(tmp_path / "run", frame)], resamples=500)
    assert found["left_out"] == [{"label": "gentle", "reason": "too large"}]
    assert found["overall"]["cases"] == 32
    assert "`gentle` failed on every case (too large)" in compare_table(found)
    assert found["failures"] == [{"method": "gentle", "planned": 32, "failed": 32, "reasons": {"too large": 32}}]
    with pytest.raises(UserError, match=r"gentle failed on every case \(too large\)"):
        compare_runs([tmp_path / "run"], against="gentle", resamples=200)


def test_a_method_that_failed_in_some_cases_is_named_with_their_number(tmp_path, gains):
    frame = make_frame(gains)
    lost = (frame.method == "gentle") & frame.edit.isin(["change_pose-0", "change_style-3"])
    frame.loc[lost, ["status", "reason", *SCORED]] = ["failed", "too large", math.nan, math.nan]
    found = compare_runs([write_run(tmp_path / "run", frame)], resamples=500)
    assert found["failures"] == [{"method": "gentle", "planned": 32, "failed": 4, "reasons": {"too large": 4}}]
    assert found["left_out"] == [] and "gentle failed in 4 of 32 cases: too large." in compare_table(found)


def test_subsets_of_the_blocks_are_not_compared(tmp_path, gains):
    frame = make_frame(gains)
    part = frame[frame.method == "sae"].assign(blocks=BLOCKS[0])
    found = compare_runs([write_run(tmp_path / "run", pd.concat([frame, part]))], resamples=200)
    assert [method["label"] for method in found["methods"]] == ["noop", "sae", "strong", "gentle"]


# ---- several runs


def test_what_two_runs_have_alike_stands_once_and_what_differs_is_told_apart(tmp_path, gains):
    first = make_frame(gains)
    second = first[first.method != "strong"].copy()
    second.loc[second.method == "gentle", "lpips_original"] += 0.2
    folders = [write_run(tmp_path / name, frame) for name, frame in (("a", first), ("b", second))]
    found = compare_runs(folders, resamples=500)
    assert [m["label"] for m in found["methods"]] == ["noop", "sae", "strong", "gentle (a)", "gentle (b)"]
    both = [cell(found, "lpips_original", "all", f"gentle ({run})")["mean"] for run in "ab"]
    assert both[1] - both[0] == pytest.approx(0.2)
    assert compare_runs(folders, against="gentle (b)", resamples=200)["against"] == "gentle (b)"
    with pytest.raises(UserError, match="several methods 'gentle@1'"):
        compare_runs(folders, against="gentle@1")


def test_strengths_are_told_apart(tmp_path, gains):
    frame = make_frame(gains)
    twice = frame[frame.method == "sae"].assign(strength=2.0)
    folder = write_run(tmp_path / "run", pd.concat([frame, twice]))
    labels = [method["label"] for method in compare_runs([folder], resamples=200)["methods"]]
    assert labels == ["noop", "sae@1", "strong", "gentle", "sae@2"]
    assert compare_runs([folder], resamples=200, against="gentle@1")["against"] == "gentle"


@pytest.mark.slow
def test_a_name_alone_is_the_method_at_the_strength_nearest_1(tmp_path, gains):
    frame = make_frame(gains)
    others = [frame[frame.method == "sae"].assign(strength=strength) for strength in (0.25, 3.0)]
    folder = write_run(tmp_path / "run", pd.concat([others[0], frame, others[1]]))  # 0.25 stands first
    assert compare_runs([folder], resamples=200)["against"] == "sae@1"
    assert compare_runs([folder], resamples=200, against="sae")["against"] == "sae@1"
    assert compare_runs([folder], resamples=200, against="sae@3")["against"] == "sae@3"


def test_a_run_on_fewer_blocks_is_told_apart(tmp_path, gains):
    whole = write_run(tmp_path / "whole", make_frame(gains))
    fewer = make_frame(gains).assign(blocks=lambda frame: frame.blocks.where(frame.blocks == "", BLOCKS[0]))
    part = write_run(tmp_path / "part", fewer, blocks=[BLOCKS[0]])
    labels = [method["label"] for method in compare_runs([whole, part], resamples=200)["methods"]]
    assert labels[:2] == ["noop", "sae (whole)"] and "sae (part)" in labels


@pytest.mark.slow
def test_folders_of_one_name_are_told_apart_by_their_path(tmp_path, gains):
    folders = [write_run(tmp_path / part / "run", make_frame(gains, run_seed=i)) for i, part in enumerate("ab")]
    assert compare_runs(folders, resamples=200)["runs"] == [str(folder) for folder in folders]
    with pytest.raises(UserError, match="given twice"):
        compare_runs([folders[0], folders[0]])


def refuse(tmp_path, gains, change=lambda frame: frame, scores=DESCRIBED, metrics=(), **manifest):
    one = write_run(tmp_path / "one", make_frame(gains))
    two = write_run(tmp_path / "two", change(make_frame(gains, run_seed=1)), scores=scores, **manifest)
    with pytest.raises(UserError) as error:
        compare_runs([one, two], metrics=metrics)
    return str(error.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda f: f[f.seed == 42], "seeds: 42, 43 in one; 42 in two"),
        (lambda f: f[f.edit != "change_pose-3"], "edits: 16 (ids"),
        (lambda f: f.assign(edit=f.edit.str.replace("pose-3", "pose-9")), "edits: 16 (ids"),
        (lambda f: f.assign(backbone="sdxl-turbo@4", steps=4), "sdxl-turbo@4 in 4 steps in two"),
        (lambda f: f.assign(mode="reference"), "mode: strict in one; reference in two"),
        (lambda f: f.assign(dtype="float16"), "precision: float32 in one; float16 in two"),
    ],
)
def test_unlike_runs_are_refused_by_what_is_unlike(tmp_path, gains, change, said):
    assert said in refuse(tmp_path, gains, change)


def test_edits_of_other_contents_are_unlike(tmp_path, gains):
    said = refuse(tmp_path, gains, edits={"count": 16, "sha256": "ff" * 32})
    assert "contents 9c9c9c9c) in one" in said and "contents ffffffff) in two" in said


def test_metrics_of_another_network_or_number_are_unlike(tmp_path, gains):
    other = [DESCRIBED[0], Score("lpips_original", "LPIPS", "lower", "distance", network="VGG")]
    said = refuse(tmp_path / "a", gains, scores=other)
    assert (
        "metric lpips_original: AlexNet, weights abababababab in one; VGG in two" in said and "riebench score" in said
    )
    assert "metric lpips_original" in refuse(tmp_path / "b", gains, scores=None)  # that says nothing
    more = [*DESCRIBED, Score("psnr", "PSNR", "higher", "dB")]
    said = refuse(tmp_path / "c", gains, lambda frame: frame.assign(psnr=20.0), scores=more)
    assert "metrics: clip_text_edited, lpips_original in one; clip_text_edited, lpips_original, psnr in two" in said


def test_metrics_that_are_not_asked_for_need_not_agree(tmp_path, gains):
    other = [DESCRIBED[0], Score("lpips_original", "LPIPS", "lower", "distance", network="VGG")]
    one = write_run(tmp_path / "one", make_frame(gains))
    two = write_run(tmp_path / "two", make_frame(gains, run_seed=1), scores=other)
    found = compare_runs([one, two], metrics=["clip_text_edited"], resamples=200)
    assert {c["metric"] for c in found["cells"]} == {"clip_text_edited"}


def test_all_differences_are_named_at_once(tmp_path, gains):
    said = refuse(tmp_path, gains, lambda f: f[f.seed == 42].assign(mode="reference", dtype="float16"))
    assert all(word in said for word in ("seeds:", "mode:", "precision:"))


def test_what_cannot_be_compared_is_said_in_a_line(tmp_path, run, gains):
    with pytest.raises(UserError, match="no run is given"):
        compare_runs([])
    with pytest.raises(UserError, match="'strang'; did you mean 'strong'"):
        compare_runs([run], against="strang")
    with pytest.raises(UserError, match="metric 'lpips_originl'; did you mean 'lpips_original'"):
        compare_runs([run], metrics=["lpips_originl"])
    with pytest.raises(UserError, match="is not finished"):
        compare_runs([write_run(tmp_path / "half", make_frame(gains), status="interrupted")])
    with pytest.raises(UserError, match="only one method"):
        compare_runs([write_run(tmp_path / "lone", make_frame({}))])


# ---- what is written


def test_the_table_lines_up_and_is_markdown(found):
    table = compare_table(found)
    groups = [[line for line in part.splitlines() if line.startswith("|")] for part in table.split("\n\n")]
    groups = [group for group in groups if group]
    assert len(groups) == 3  # all, and each category
    for group in groups:
        assert len({len(line) for line in group}) == 1
        assert len({line.count("|") for line in group}) == 1
        assert set(group[1]) <= set("|-: ")
    (line,) = [line for line in groups[1] if line.startswith("| strong")]
    assert "better" in line and "worse" in line


def test_the_files_say_what_was_found(tmp_path, found):
    paths = write_compare(found, tmp_path / "out")
    assert [path.name for path in paths] == ["compare.json", "compare.csv", "compare.md"]
    assert json.loads(paths[0].read_text()) == json.loads(json.dumps(found, allow_nan=False))
    table = pd.read_csv(paths[1]).set_index(["metric", "category", "method"])
    assert len(table) == len(found["cells"])
    for one in found["cells"]:
        row = table.loc[one["metric"], one["category"], one["method"]]
        assert row["verdict"] == one["verdict"]
        assert [row[key] for key in ("difference", "low", "high")] == pytest.approx(
            list(one["difference"].values())[:3], nan_ok=True
        )
    assert paths[2].read_text() == compare_table(found)


def test_a_label_is_a_word_in_every_file(tmp_path, gains):
    labels = {"sae": "=cmd|' /C calc'!A0", "strong": "+1|2\n| row | of | its own |", "gentle": "\x1b[2J@x"}
    frame = make_frame(gains, num_edits=2)
    run = write_run(tmp_path / "=run", frame.assign(method=frame["method"].replace(labels)))
    paths = write_compare(compare_runs([run], metrics=["lpips_original"]), tmp_path / "out")
    with open(paths[1], newline="") as file:
        head, *rows = csv.reader(file)
    assert {len(row) for row in rows} == {len(head)}
    cells = {cell for row in rows for cell in row}
    assert cells >= {"'=cmd|' /C calc'!A0", "'+1|2 | row | of | its own |"}
    assert not any(cell[:1] in "=+@\t\r" for row in rows for cell in row if cell)
    text = paths[2].read_text()
    assert "\x1b" not in text and not any(line.startswith("| row") for line in text.splitlines())


@pytest.mark.process
def test_neither_comparing_nor_the_leaderboard_imports_torch(tmp_path, run):
    """Nor when they are used: torch is not in the process that compared, validated an entry and made the site."""
    code = """
import sys
from pathlib import Path
import riebench.analysis.ranks, riebench.leaderboard.submit
from riebench.analysis.compare import compare_runs
from riebench.analysis.compare_words import compare_table
from riebench.core.files import data_folder
from riebench.leaderboard import entry_folders, render_site, validate
assert compare_table(compare_runs([Path(sys.argv[1])], resamples=50))
entries = data_folder() / "leaderboard"
assert validate(entry_folders(entries)[0]) == [] and render_site(entries, Path(sys.argv[2])).is_file()
sys.exit("torch" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", code, str(run), str(tmp_path / "site")]).returncode == 0
