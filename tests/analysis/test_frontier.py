"""Curves of edit gain against preservation cost, and strengths chosen on one half: by hand and in simulation."""

from __future__ import annotations

import json
import math

import numpy as np
import pandas as pd
import pytest
from planted import BLOCKS, PLANTED, make_row, make_scores

from riebench.analysis import summarise
from riebench.analysis.frontier import MATCHED, Sweep, area, curves, gain_at, hypervolume
from riebench.analysis.statistics import edit_weights
from riebench.analysis.strengths import HALVES, chosen_strengths, in_first_half

# A curve through (0, 0), (0.1, 0.2), (0.3, 0.1), (0.4, 0.4), as columns of weighings
COSTS, GAINS = np.array([[0.1], [0.3], [0.4]]), np.array([[0.2], [0.1], [0.4]])
WHOLE = "+".join(BLOCKS)


def weights(num_edits):
    return edit_weights(num_edits, 300, seed=0)


# ---- one curve, by hand


@pytest.mark.parametrize(
    ("cost", "gain"), [(0.0, 0.0), (0.05, 0.1), (0.1, 0.2), (0.2, 0.15), (0.35, 0.25), (0.4, 0.4), (0.9, 0.4)]
)
def test_gain_at_a_cost_lies_on_the_lines_between_points(cost, gain):
    assert gain_at(COSTS, GAINS, cost) == pytest.approx([gain])


def test_area_is_that_under_the_best_gain_so_far():
    # to 0.1 a triangle, to 0.3 + 0.1 / 3 flat at 0.2, to 0.4 a line up to 0.4
    flat_to = 0.3 + 0.1 / 3
    whole = 0.01 + 0.2 * (flat_to - 0.1) + (0.4 - flat_to) * 0.3
    assert area(COSTS, GAINS, 0.4) == pytest.approx([whole / 0.4])
    assert area(COSTS, GAINS, 0.2) == pytest.approx([(0.01 + 0.02) / 0.2])
    assert area(COSTS, GAINS, 0.05) == pytest.approx([0.05])
    assert area(COSTS, GAINS, 0.5) == pytest.approx([(whole + 0.1 * 0.4) / 0.5])  # flat behind the last point
    assert area(COSTS, GAINS, 0.0) == pytest.approx([0.0])


@pytest.mark.slow
def test_area_against_a_fine_grid_of_costs():
    rng = np.random.default_rng(0)
    costs, gains = rng.gamma(2, 0.1, (5, 40)), rng.normal(0.1, 0.2, (5, 40))
    grid = np.linspace(0, 0.7, 7001)
    best = np.maximum.accumulate([gain_at(costs, gains, cost) for cost in grid], axis=0)
    assert area(costs, gains, 0.7) == pytest.approx(np.trapezoid(best, grid, axis=0) / 0.7, abs=1e-3)


def test_what_does_harm_at_every_strength_has_no_area():
    assert area(COSTS, -GAINS, 0.4) == pytest.approx([0.0])
    assert hypervolume(COSTS, -GAINS, 0.4) == pytest.approx([0.0])


def test_hypervolume_counts_what_the_points_dominate():
    # 0.2 from 0.1 to 0.4, of which the point at 0.3 adds nothing; 0.4 from 0.4 to the reference
    assert hypervolume(COSTS, GAINS, 0.5) == pytest.approx([0.2 * 0.3 + 0.4 * 0.1])
    assert hypervolume(COSTS, GAINS, 0.4) == pytest.approx([0.2 * 0.3])
    assert hypervolume(COSTS, GAINS, 0.25) == pytest.approx([0.2 * 0.15])


def test_strengths_of_which_the_stronger_costs_less_are_taken_in_the_order_of_cost():
    turned = [2, 0, 1]
    assert gain_at(COSTS[turned], GAINS[turned], 0.2) == pytest.approx([0.15])
    assert area(COSTS[turned], GAINS[turned], 0.4) == pytest.approx(area(COSTS, GAINS, 0.4))
    assert hypervolume(COSTS[turned], GAINS[turned], 0.5) == pytest.approx([0.1])


# ---- curves of methods beside each other


def make_sweep(method, scale, *, costs=(0.1, 0.2, 0.4), num_edits=20):
    edits = tuple(f"edit-{i}" for i in range(num_edits))
    level = np.linspace(0.5, 1.5, num_edits)
    gains = np.array([0.2, 0.3, 0.35])[:, None] * scale * level
    return Sweep(method, (0.5, 1.0, 2.0), edits, gains, np.array(costs)[:, None] * level)


def test_matched_costs_are_shares_of_what_two_methods_reach():
    found = curves([make_sweep("near", 1.0, costs=(0.05, 0.1, 0.12)), make_sweep("far", 0.5)], weights)
    assert [at["cost"] for at in found["near"]["at_cost"]] == pytest.approx([0.12 * share for share in MATCHED])
    assert [at["cost"] for at in found["far"]["at_cost"]] == [at["cost"] for at in found["near"]["at_cost"]]
    # cost 0.06 lies a fifth of the way from (0.05, 0.2) to (0.1, 0.3), and on the first line of the other curve
    assert found["near"]["at_cost"][2]["gain"]["mean"] == pytest.approx(0.22)
    assert found["far"]["at_cost"][2]["gain"]["mean"] == pytest.approx(0.06)
    assert found["near"]["area"]["mean"] > found["far"]["area"]["mean"]
    one = curves([make_sweep("far", 0.5)], weights)["far"]
    assert one["at_cost"][-1]["cost"] == pytest.approx(0.4 * MATCHED[-1])


def test_costs_that_a_method_does_not_reach_are_null():
    found = curves([make_sweep("a", 1), make_sweep("b", 1), make_sweep("near", 1, costs=(0.01, 0.02, 0.1))], weights)
    assert [at["gain"] is None for at in found["near"]["at_cost"]] == [False, True, True, True, True]
    assert not any(at["gain"] is None for at in found["a"]["at_cost"])
    json.dumps(found, allow_nan=False)


def test_costs_move_with_gains_from_resample_to_resample():
    """Every edit gains twice what it costs, so whatever the resample, the line has one slope."""
    level = np.linspace(0.1, 3.0, 15)
    sweep = Sweep(
        "m",
        (1.0, 2.0),
        tuple(map(str, range(15))),
        np.stack([level, 2 * level]) * 0.2,
        np.stack([level, 2 * level]) * 0.1,
    )
    found = curves([sweep], weights)["m"]
    at_cost = found["at_cost"][2]
    assert at_cost["gain"]["mean"] == pytest.approx(2 * at_cost["cost"])
    assert at_cost["gain"]["withheld"] == "too few differ"
    assert found["points"][1]["gain"]["low"] < 0.9 * found["points"][1]["gain"]["mean"]


def test_methods_that_cost_nothing_have_curves_without_width():
    sweep = Sweep("m", (1.0, 2.0), tuple("abcdefg"), np.zeros((2, 7)), np.zeros((2, 7)))
    found = curves([sweep], weights)["m"]
    nothing = {"mean": 0.0, "low": None, "high": None, "withheld": "too few edits"}
    assert found["area"] == found["hypervolume"] == nothing
    assert all(at["gain"] is None for at in found["at_cost"])
    assert curves([], weights) == {}


# ---- strengths


def make_choice(gains_se, costs_se=None):
    gains_se = np.asarray(gains_se, dtype=float)
    edits = tuple(f"edit-{i}" for i in range(gains_se.shape[1]))
    strengths = tuple(float(s) for s in range(1, len(gains_se) + 1))
    return Sweep("m", strengths, edits, gains_se, gains_se if costs_se is None else np.asarray(costs_se))


def test_halves_depend_on_the_edit_alone_and_are_about_equal():
    first = [in_first_half(f"edit-{i}") for i in range(1000)]
    assert 450 < sum(first) < 550
    assert first[:10] == [in_first_half(f"edit-{i}") for i in range(10)]
    # by sha256 of the id, of which these are known: e3b0..., ca97...
    assert not in_first_half("") and not in_first_half("a")


def test_each_half_is_reported_at_the_strength_chosen_on_the_other():
    first = np.array([in_first_half(f"edit-{i}") for i in range(10)])
    gains = np.array([np.where(first, 0.5, 0.1), np.where(first, 0.2, 0.4)])
    found = chosen_strengths(make_choice(gains, 2 * gains), weights)
    assert found["chosen"] == {HALVES[0]: 1.0, HALVES[1]: 2.0} and found["strengths"] == [1.0, 2.0]
    assert found["gain"]["mean"] == pytest.approx(np.where(first, 0.2, 0.1).mean())
    assert found["cost"]["mean"] == pytest.approx(2 * found["gain"]["mean"])
    assert found["optimistic_gain"]["mean"] == pytest.approx(gains.mean(axis=1).max())


def test_a_half_without_edits_leaves_nothing_to_report():
    first = [f"edit-{i}" for i in range(50) if in_first_half(f"edit-{i}")]
    sweep = Sweep("m", (1.0, 2.0), tuple(first), np.ones((2, len(first))), np.ones((2, len(first))))
    assert chosen_strengths(sweep, weights) is None


def test_the_best_of_equal_strengths_looks_better_than_it_is_but_not_on_other_edits():
    rng = np.random.default_rng(0)
    found = [chosen_strengths(make_choice(rng.normal(0.1, 0.1, (4, 12))), weights) for _ in range(400)]
    chosen, optimistic = (np.array([one[key]["mean"] for one in found]) for key in ("gain", "optimistic_gain"))
    error = chosen.std(ddof=1) / math.sqrt(len(found))
    assert abs(chosen.mean() - 0.1) < 3 * error
    assert optimistic.mean() - 0.1 > 10 * error


# ---- in a summary


def test_a_sweep_is_in_the_summary_and_single_strengths_are_not():
    frame = make_scores({"alone": PLANTED["alone"], "nothing": PLANTED["nothing"]}, num_edits=4)
    base = frame[frame["method"] == "noop"]
    swept = [
        make_row(
            row.edit, row.category, row.seed, "swept", WHOLE, strength,
            clip_text_edited=row.clip_text_edited + gain, lpips_original=cost,
        )
        for row in base.itertuples()
        for strength, gain, cost in ((2.0, 0.3, 0.4), (0.5, 0.1, 0.1), (1.0, 0.2, 0.2))
    ]  # fmt: skip
    summary = summarise(pd.concat([frame, pd.DataFrame(swept)], ignore_index=True), BLOCKS, resamples=50)
    json.dumps(summary, allow_nan=False)
    frontier = summary["frontier"]
    assert (frontier["gain"], frontier["cost"]) == ("clip_text_edited", "lpips_original")
    assert list(frontier["overall"]) == list(frontier["categories"]["nothing"]) == ["swept"]
    assert list(frontier["categories"]) == ["alone", "nothing"]
    points = frontier["overall"]["swept"]["points"]
    assert [(p["strength"], p["gain"]["mean"], p["cost"]["mean"]) for p in points] == [
        (0.5, pytest.approx(0.1), pytest.approx(0.1)),
        (1.0, pytest.approx(0.2), pytest.approx(0.2)),
        (2.0, pytest.approx(0.3), pytest.approx(0.4)),
    ]
    # triangles and trapezia under (0.1, 0.1), (0.2, 0.2), (0.4, 0.3)
    assert frontier["overall"]["swept"]["area"]["mean"] == pytest.approx((0.005 + 0.015 + 0.05) / 0.4)
    assert summary["chosen_strengths"]["swept"]["chosen"] == {"first half": 2.0, "second half": 2.0}
    assert summary["chosen_strengths"]["swept"]["gain"]["mean"] == pytest.approx(0.3)
