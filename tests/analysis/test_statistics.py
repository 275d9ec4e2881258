"""Intervals, tests and the cases that count: against scipy, by hand, and in simulation."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from planted import fail, make_row
from simulated import (
    area_under_curve,
    coverage,
    exponential,
    family_wise_error,
    mostly_zero,
    normal,
    ratio_of_means,
    skewed,
    zero_inflated,
)

from riebench.analysis.frames import validate_scores
from riebench.analysis.statistics import (
    Interval,
    bootstrap_intervals,
    bootstrap_weights,
    edit_means,
    edit_weights,
    holm,
    intervals,
    mean_intervals,
    seed_spread,
    sign_flip_p,
    valid_cases,
)
from riebench.core.scores import Setting

# ---- resamples and intervals


def test_bootstrap_weights_count_whole_edits():
    weights = bootstrap_weights(5, 10_000, np.random.default_rng(0))
    assert weights.shape == (10_000, 5)
    assert np.allclose(weights.sum(axis=1), 1)
    assert np.allclose(weights * 5, np.round(weights * 5))
    assert weights.mean(axis=0) == pytest.approx([0.2] * 5, abs=0.01)


def test_edit_weights_are_the_sample_then_each_edit_left_out_then_resamples():
    weights = edit_weights(4, 50, seed=3)
    values = np.array([1.0, 2.0, 4.0, 8.0])
    assert weights.shape == (1 + 4 + 50, 4)
    assert weights[:5] @ values == pytest.approx([15 / 4, 14 / 3, 13 / 3, 11 / 3, 7 / 3])
    assert (weights == edit_weights(4, 50, seed=3)).all() and (weights[5:] != edit_weights(4, 50, seed=4)[5:]).any()


def expanded_level(num_edits, level=0.95):
    """The coverage to ask of a normal-theory interval so that it is as wide as that of t with the unbiased spread."""
    t = scipy.stats.t.ppf((1 + level) / 2, num_edits - 1)
    return 1 - 2 * scipy.stats.norm.sf(t * math.sqrt(num_edits / (num_edits - 1)))


def assert_close(ours, theirs, width_share=0.05):
    for one, low, high in zip(ours, theirs.low, theirs.high, strict=True):
        assert abs(one.low - low) < width_share * (high - low)
        assert abs(one.high - high) < width_share * (high - low)


@pytest.mark.parametrize("num_edits", [12, 25])
def test_intervals_of_means_are_scipys_bca_at_the_expanded_level(num_edits):
    values = np.random.default_rng(3).exponential(size=(num_edits, 3))
    values[: num_edits // 2, 2] = 0.0
    ours = bootstrap_intervals(values, bootstrap_weights(num_edits, 20_000, np.random.default_rng(0)))
    theirs = scipy.stats.bootstrap(
        (values,), np.mean, n_resamples=20_000, method="BCa", confidence_level=expanded_level(num_edits), rng=1
    )
    assert [one.mean for one in ours] == pytest.approx(values.mean(axis=0))
    assert_close(ours, theirs.confidence_interval)
    plain = scipy.stats.bootstrap((values,), np.mean, n_resamples=20_000, method="percentile", rng=1)
    assert all(one.high > high for one, high in zip(ours, plain.confidence_interval.high, strict=True))


def test_intervals_of_a_ratio_are_scipys_too():
    rng = np.random.default_rng(4)
    gains, costs = rng.gamma(2, 1, (15, 1)), rng.gamma(3, 1, (15, 1))
    weights = edit_weights(15, 20_000, seed=0)
    ours = intervals(((weights @ gains) / (weights @ costs)).T, 15)
    theirs = scipy.stats.bootstrap(
        (gains, costs),
        lambda g, c, axis: g.mean(axis=axis) / c.mean(axis=axis),
        paired=True,
        n_resamples=20_000,
        method="BCa",
        confidence_level=expanded_level(15),
        rng=1,
    )
    assert_close(ours, theirs.confidence_interval)


def test_two_edits_one_edit_and_edits_without_spread_by_hand():
    # t with one degree of freedom leaves nothing out: the ends are the least and the greatest resample
    (two,) = mean_intervals([[0.0], [1.0]], edit_weights(2, 400, 0))
    assert two == Interval(0.5, 0.0, 1.0)
    (one,) = mean_intervals([[0.3]], edit_weights(1, 400, 0))
    assert one == Interval(0.3, None, None) and not one.above_zero and not one.below_zero
    (same,) = mean_intervals([[0.1]] * 9, edit_weights(9, 400, 0))
    assert [same.mean, same.low, same.high] == pytest.approx([0.1] * 3)


def test_ends_are_values_that_the_edits_can_give():
    rare = np.zeros((12, 1))
    rare[0] = 1.0
    (interval,) = mean_intervals(rare, edit_weights(12, 4000, 0))
    assert 0 <= interval.low < 1 / 12 < interval.high <= 1


def test_paired_columns_share_their_resamples():
    values = np.random.default_rng(0).normal(size=(20, 1))
    (difference,) = mean_intervals((values + 0.1) - values, edit_weights(20, 500, 0))
    assert difference.high - difference.low == pytest.approx(0, abs=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("num_edits", [12, 60])
@pytest.mark.parametrize("simulate", [normal, skewed, zero_inflated, ratio_of_means, area_under_curve])
def test_intervals_cover_the_truth_in_93_to_97_of_100(simulate, num_edits):
    assert 0.93 <= coverage(simulate, num_edits) <= 0.97


@pytest.mark.slow
@pytest.mark.parametrize("simulate", [exponential, mostly_zero])
def test_the_more_skewed_the_more_edits_it_takes(simulate):
    """Of the edits of `mostly_zero`, one in five does anything: one sample of twelve in fifteen shows no effect."""
    few, many = (coverage(simulate, num_edits, repeats=4000) for num_edits in (12, 60))
    assert 0.80 < few < many
    assert 0.93 <= many <= 0.97


# ---- tests


def test_holm_by_hand():
    # sorted .005 .01 .03 .04 -> x4 .02, x3 .03, x2 .06, x1 .04 raised to .06
    assert holm(np.array([0.01, 0.04, 0.03, 0.005])) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm(np.array([0.6, 0.7])) == pytest.approx([1.0, 1.0])


def hall_statistic(sample, axis=-1):
    """Hall's cubic transformation of the studentised mean, without its constant, as the paper writes it."""
    s = np.mean(sample, axis=axis) / np.std(sample, axis=axis)
    g = scipy.stats.skew(sample, axis=axis)
    return s + g * s**2 / 3 + g**2 * s**3 / 27


def test_sign_flips_of_few_edits_are_all_tried_as_scipy_does():
    values = np.random.default_rng(5).exponential(size=(12, 3)) - 0.6
    values[:, 2] = [1, -1, 0] * 4  # many patterns tie with the observed one
    theirs = [
        scipy.stats.permutation_test((column,), hall_statistic, permutation_type="samples", n_resamples=np.inf).pvalue
        for column in values.T
    ]
    assert 0.001 < min(theirs) < 0.3
    assert sign_flip_p(values, 5000, np.random.default_rng(0)) == pytest.approx(theirs)
    drawn = sign_flip_p(values, 2000, np.random.default_rng(0))
    assert drawn == pytest.approx(theirs, abs=0.04) and (drawn != theirs).any()


def test_sign_flips_do_not_depend_on_the_unit():
    values = np.random.default_rng(5).exponential(size=(12, 2)) - 0.6
    ours = sign_flip_p(values, 5000, np.random.default_rng(0))
    assert (sign_flip_p(1e-6 * values, 5000, np.random.default_rng(0)) == ours).all()


def test_sign_flips_cannot_reject_one_edit_nor_give_zero():
    assert sign_flip_p(np.array([[3.0]]), 1000, np.random.default_rng(0)) == pytest.approx([1.0])
    assert sign_flip_p(np.ones((40, 1)), 999, np.random.default_rng(0)) == pytest.approx([1 / 1000])
    assert sign_flip_p(np.zeros((8, 1)), 999, np.random.default_rng(0)) == pytest.approx([1.0])


@pytest.mark.slow
@pytest.mark.parametrize("num_edits", [12, 60])
def test_family_wise_error_is_at_most_5_of_100(num_edits):
    # two standard errors of a share of 5 % over 500 tables
    assert family_wise_error(num_edits, repeats=500) <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / 500)


@pytest.mark.slow
def test_family_wise_error_is_at_most_5_of_100_also_of_skewed_differences_of_many_edits():
    assert family_wise_error(60, skew=True, repeats=500) <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / 500)


# ---- cases and seeds


def indexed(cells):
    index = pd.MultiIndex.from_tuples([("c", *case) for case in cells], names=["category", "edit", "seed"])
    return pd.DataFrame({"x": list(cells.values())}, index=index)


def test_seeds_are_averaged_inside_an_edit():
    means = edit_means(indexed({("a", 0): 1.0, ("a", 1): 3.0, ("b", 0): 10.0}))
    assert means["x"].to_dict() == {("c", "a"): 2.0, ("c", "b"): 10.0}


def test_seed_spread_by_hand():
    both = {("a", 0): 1.0, ("a", 1): 3.0, ("b", 0): 10.0, ("b", 1): 14.0}
    # means of the seeds over edits: 5.5 and 8.5
    assert seed_spread(indexed(both))["x"] == pytest.approx(3 / math.sqrt(2))
    # an edit that lacks a seed says nothing of the seeds
    assert seed_spread(indexed({**both, ("d", 0): 1000.0}))["x"] == pytest.approx(3 / math.sqrt(2))
    assert math.isnan(seed_spread(indexed({("a", 0): 1.0, ("b", 0): 2.0}))["x"])
    assert math.isnan(seed_spread(indexed({("a", 0): 1.0, ("b", 1): 2.0}))["x"])


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
