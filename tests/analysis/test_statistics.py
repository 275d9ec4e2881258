"""Intervals, tests and the cases that count: against scipy, by hand, and in simulation."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from planted import fail, make_row
from simulated import (
    FUNCTIONS,
    MEANS,
    coverage,
    family_wise_error,
    found_in_tables,
    mostly_zero,
    rare_success,
    success,
    zero_inflated,
)

from riebench.analysis.frames import validate_scores
from riebench.analysis.statistics import (
    MIN_EDITS,
    TOO_FEW_DIFFER,
    TOO_FEW_EDITS,
    Interval,
    adjusted_p,
    bootstrap_intervals,
    bootstrap_weights,
    edit_means,
    edit_weights,
    holm,
    intervals,
    mean_intervals,
    seed_spread,
    sides,
    sign_flip_p,
    skewed,
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
    """The coverage to ask of a normal-theory interval so that it is as wide as that of t with the unbiased spread, and
    by (2.5 / n)^2 wider."""
    t = scipy.stats.t.ppf((1 + level) / 2, num_edits - 1) * (1 + 6.25 / num_edits**2)
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


@pytest.mark.parametrize("values", [[0.3], [0.0, 1.0], np.linspace(0, 1, MIN_EDITS - 1)])
def test_below_ten_edits_there_is_a_mean_and_no_interval(values):
    (found,) = mean_intervals(np.reshape(values, (-1, 1)), edit_weights(len(values), 400, 0))
    assert found == Interval(pytest.approx(np.mean(values)), None, None, TOO_FEW_EDITS)
    assert not found.above_zero and not found.below_zero


@pytest.mark.parametrize("value", [0.0, 0.1, 1.0, -1e-9])
def test_edits_of_which_fewer_than_two_differ_have_no_interval(value):
    columns = np.full((12, 3), value)
    columns[3, 1], columns[3:5, 2] = value + 0.5, value - 0.5
    alike, one, two = mean_intervals(columns, edit_weights(12, 400, 0))
    assert alike == Interval(pytest.approx(value), None, None, TOO_FEW_DIFFER)
    assert one == Interval(pytest.approx(value + 0.5 / 12), None, None, TOO_FEW_DIFFER)
    assert not two.withheld and two.low < two.mean < two.high <= value


def test_edits_whose_ratios_do_not_differ_have_no_interval_of_the_ratio():
    costs = np.linspace(0.1, 1, 12)
    weights = edit_weights(12, 400, 0)
    gain, ratio = intervals(np.stack([weights @ (2 * costs), (weights @ (2 * costs)) / (weights @ costs)]), 12)
    assert not gain.withheld and ratio == Interval(pytest.approx(2), None, None, TOO_FEW_DIFFER)


def side(values, level=0.95):
    statistics = (edit_weights(len(values), 2000, 0) @ np.asarray(values, dtype=float))[None]
    (found,) = sides(intervals(statistics, len(values), level), statistics, len(values), level)
    return found


def test_sides_of_zero_by_hand():
    # with intervals: those of 12 edits near 0.3 and near -0.3, and one around 0
    near = np.linspace(0.2, 0.4, 12)
    assert [side(near), side(-near), side(near - 0.3)] == [1, -1, 0]
    # too few differ for an interval: where all lie on one side, that is it
    assert [side([0.1] * 12), side([-0.1] * 11 + [-0.5]), side([0.1] * 11 + [-0.1]), side([0.0] * 12)] == [1, -1, 0, 0]
    # too few for an interval: six of one sign have p = 2 / 64, five have 2 / 32; those at zero say nothing
    assert [side([0.1, 0.3, 0.2, 0.4, 0.1, 0.2]), side([0.1, 0.3, 0.2, 0.4, 0.1])] == [1, 0]
    assert [side([-1, -3, -2, -4, -1, -2, 0, 0]), side([-1, -3, -2, -4, -1, -2, 0, 1])] == [-1, 0]
    # at 1 - 5 % / 4, of four blocks at once, it takes eight: 2 / 256 is below 1/80, 2 / 128 is not
    assert [side([0.1, 0.2] * 4, 0.9875), side([0.1, 0.2] * 3 + [0.1], 0.9875)] == [1, 0]


@pytest.mark.parametrize("num_edits", [6, 9])
def test_sides_are_wrong_in_at_most_5_of_100_where_there_is_no_interval(num_edits):
    values = np.random.default_rng(0).normal(size=(num_edits, 20_000))
    statistics = (edit_weights(num_edits, 10, 0) @ values).T
    assert np.abs(sides(intervals(statistics, num_edits), statistics, num_edits)).mean() < 0.05


def test_ends_are_values_that_the_edits_can_give():
    rare = np.zeros((12, 1))
    rare[:2] = 1.0
    (interval,) = mean_intervals(rare, edit_weights(12, 4000, 0))
    assert 0 <= interval.low < 2 / 12 < interval.high <= 1


def test_paired_columns_share_their_resamples():
    values = np.random.default_rng(0).normal(size=(20, 1))
    scores = np.hstack([values, values + 0.1])
    one, other = mean_intervals(scores, edit_weights(20, 500, 0))
    assert (other.low - one.low, other.high - one.high) == pytest.approx((0.1, 0.1))


@pytest.mark.slow
@pytest.mark.parametrize("num_edits", [MIN_EDITS, 12, 60])
@pytest.mark.parametrize("simulate", [*MEANS, *FUNCTIONS])
def test_intervals_that_are_given_cover_the_truth_in_93_of_100(simulate, num_edits):
    """Within three standard errors over 2,000 data sets; where hardly any edit differs they cover more often."""
    covered, withheld = coverage(simulate, num_edits, repeats=2000)
    assert covered >= 0.93 - 3 * math.sqrt(0.93 * 0.07 / 2000)
    assert covered <= 0.97 + 3 * math.sqrt(0.97 * 0.03 / 2000) or simulate in (mostly_zero, success, rare_success)
    assert withheld == 0 or simulate in (zero_inflated, mostly_zero, success, rare_success)


@pytest.mark.parametrize("simulate", [*MEANS, *FUNCTIONS])
def test_no_interval_is_given_below_ten_edits(simulate):
    assert coverage(simulate, 6, repeats=20, resamples=50) == (None, 1.0)


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


def test_skewness_of_a_table_is_that_of_scipy():
    columns = [np.random.default_rng(i).exponential(size=n) for i, n in enumerate((5, 12, 12, 29))]
    shares = [
        scipy.stats.skew(c) ** 2 / (6 * (len(c) - 2) / ((len(c) + 1) * (len(c) + 3))) for c in columns
    ]  # the variance that scipy.stats.skewtest takes, too
    assert skewed(columns) == (np.mean(shares) > 1.5)
    assert skewed([c for c, share in zip(columns, shares, strict=True) if share > 1.5])
    assert not skewed([c for c, share in zip(columns, shares, strict=True) if share <= 1.5])
    assert not skewed([]) and not skewed([np.ones(8), np.zeros(8), np.array([1.0, 5.0])])
    assert skewed([-column * 1e-7 for column in columns]) == skewed(columns)


def test_few_skewed_differences_count_twice_and_others_once():
    def p_of(columns):
        return adjusted_p(columns, 4096, lambda _: np.random.default_rng(0))

    even, uneven = np.linspace(-0.2, 1, 12), np.array([0.1] * 9 + [0.2, 0.3, 4.0])
    many = np.tile(uneven, 3)
    plain = {n: sign_flip_p(c[:, None], 4096, np.random.default_rng(0))[0] for n, c in enumerate((even, uneven, many))}
    assert not skewed([even]) and skewed([uneven])
    assert p_of([even]) == pytest.approx([plain[0]]) and p_of([uneven]) == pytest.approx([2 * plain[1]])
    assert p_of([many]) == pytest.approx([plain[2]])  # with 36 edits the test keeps its level by itself
    both = sorted([2 * plain[1], plain[2]])  # Holm: the least p counts for both
    assert sorted(p_of([uneven, many])) == pytest.approx([2 * both[0], max(2 * both[0], both[1])])
    assert len(p_of([])) == 0


@pytest.mark.slow
@pytest.mark.parametrize("skew", [False, True])
@pytest.mark.parametrize("num_edits", [12, 60])
def test_family_wise_error_is_at_most_6_of_100(num_edits, skew):
    # two standard errors of a share of 6 % over 500 tables
    assert family_wise_error(num_edits, skew, repeats=500) <= 0.06 + 2 * math.sqrt(0.06 * 0.94 / 500)


@pytest.mark.slow
def test_hardly_any_power_is_lost_where_differences_are_not_skewed():
    _, adjusted, _, alone = found_in_tables(12, effect=1.0, repeats=300)
    assert alone - 0.03 < adjusted <= alone and alone > 0.3


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
