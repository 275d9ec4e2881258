"""Statistics over edits are paired: which cases count, bootstrap intervals, a randomisation test, Holm's correction.

A case is (edit, seed). The seeds of an edit are not independent of each other, so they are averaged first and the edit
is what is resampled.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pandas as pd
from scipy.special import ndtr, ndtri, stdtrit

from riebench.core.scores import CASE, SETTING, Setting

NOT_RUN = "not run"
COLUMNS_AT_ONCE, FLIPS_AT_ONCE = 256, 1024  # for which memory is taken

#: Below this number of edits no interval is given: none covers skewed values in 93 of 100 data sets
#: (`docs/statistics.md`).
MIN_EDITS = 10
#: Nor where fewer edits than this differ from what most of them show.
MIN_DIFFERENT = 2
#: In place of an interval, for these two reasons.
TOO_FEW_EDITS, TOO_FEW_DIFFER = "too few edits", "too few differ"

#: Below this number of edits, p counts `SKEWED_COUNTS` times where the differences of a table have `SKEWED` times the
#: squared skewness that normal ones would show.
MANY_EDITS, SKEWED, SKEWED_COUNTS = 30, 1.5, 2


@dataclass(frozen=True)
class Interval:
    """A mean and the ends of its interval; None where it is withheld."""

    mean: float
    low: float | None
    high: float | None
    withheld: str = ""
    """Why there are no ends, `TOO_FEW_EDITS` or `TOO_FEW_DIFFER`; "" where there are."""

    @property
    def above_zero(self) -> bool:
        """Returns whether all of the interval lies above zero."""
        return self.low is not None and self.low > 0

    @property
    def below_zero(self) -> bool:
        """Returns whether all of the interval lies below zero."""
        return self.high is not None and self.high < 0


@dataclass(frozen=True)
class ValidCases:
    """The cases on which every one of a set of settings succeeded, and the others with the reason why not."""

    cases: pd.MultiIndex
    """Levels category, edit, seed."""

    failed: pd.DataFrame
    """Columns category, edit, seed, reason; one row a case that some setting failed on."""

    def failures(self) -> dict[str, dict[str, int]]:
        """Returns category -> reason -> number of cases."""
        return {
            category: {str(reason): int(count) for reason, count in group["reason"].value_counts().items()}
            for category, group in self.failed.groupby("category", sort=False)
        }


def valid_cases(frame: pd.DataFrame, settings: Iterable[Setting]) -> ValidCases:
    """Returns the intersection of the cases that each setting has an "ok" row for, out of all the frame's cases.

    A case without a row under one of the settings counts as failed, with the reason "not run" unless another setting
    recorded one.
    """
    wanted = pd.MultiIndex.from_tuples(list(settings), names=SETTING)
    every_case = frame[CASE].drop_duplicates()
    rows = frame[pd.MultiIndex.from_frame(frame[SETTING]).isin(wanted)]
    passed = rows[rows["status"] == "ok"].groupby(CASE, sort=False).size().rename("passed")
    reasons = rows[rows["status"] == "failed"].groupby(CASE, sort=False)["reason"].first()
    cases = every_case.join(passed, on=CASE).join(reasons, on=CASE)
    valid = cases["passed"] == len(wanted)
    failed = cases.loc[~valid, [*CASE, "reason"]].fillna({"reason": NOT_RUN}).reset_index(drop=True)
    return ValidCases(pd.MultiIndex.from_frame(cases.loc[valid, CASE]), failed)


def edit_means(table: pd.DataFrame) -> pd.DataFrame:
    """Returns means of a table of (category, edit, seed) rows over the seeds of each edit: rows (category, edit)."""
    edit_n, edits = _edits_of(table.index)
    means = table.groupby(edit_n, sort=False).mean()
    means.index = edits
    return means


def _edits_of(cases: pd.MultiIndex) -> tuple[np.ndarray, pd.MultiIndex]:
    """Returns the number of each case's edit, counted from its first case on, and the edits (category, edit)."""
    pairs = cases.droplevel("seed").reorder_levels(["category", "edit"])
    pair_n = pairs.codes[0].astype(np.int64) * len(pairs.levels[1]) + pairs.codes[1]
    edit_n, distinct = pd.factorize(pair_n)
    first_e: np.ndarray = np.empty(len(distinct), dtype=np.int64)
    first_e[edit_n[::-1]] = np.arange(len(edit_n))[::-1]
    return edit_n, pairs[first_e]


def bootstrap_weights(num_edits: int, resamples: int, generator: np.random.Generator) -> np.ndarray:
    """Returns resamples of `num_edits` edits with replacement, as weights `[resamples, num_edits]` whose rows sum to
    one."""
    return generator.multinomial(num_edits, np.full(num_edits, 1 / num_edits), size=resamples) / num_edits


@lru_cache(maxsize=8)
def edit_weights(num_edits: int, resamples: int, seed: int) -> np.ndarray:
    """Returns the weighings of edits that an interval needs, `[1 + num_edits + resamples, num_edits]`: all edits alike,
    each of them left out in turn, then `bootstrap_weights`. Every row sums to one, but for the second with a single
    edit, which is zero. The array is kept for the next who asks for it, and cannot be written to."""
    generator = np.random.default_rng([seed, num_edits])
    weights_we = with_jackknife(bootstrap_weights(num_edits, resamples, generator))
    weights_we.flags.writeable = False
    return weights_we


def with_jackknife(weights_re: np.ndarray) -> np.ndarray:
    """Returns the rows of `edit_weights`, for resamples that are given: `[resamples, num_edits]`."""
    num_edits = weights_re.shape[1]
    left_out = (1 - np.eye(num_edits)) / max(num_edits - 1, 1)
    return np.vstack([np.full((1, num_edits), 1 / num_edits), left_out, weights_re])


def intervals(statistics_kw: np.ndarray, num_edits: int, level: float = 0.95) -> list[Interval]:
    """Returns the bootstrap interval of each statistic, from its values under the rows of `edit_weights`, `[statistics,
    rows]`.

    The BCa interval (Efron, "Better Bootstrap Confidence Intervals", 1987: bias from the share of resamples below the
    statistic, ties counting half, acceleration from the jackknife) at the expanded level of Hesterberg, "What Teachers
    Should Know About the Bootstrap", 2015, section 3.2: the normal quantile z is replaced by sqrt(n / (n - 1)) times
    that of t with n - 1 degrees of freedom, since the spread of resamples of n edits is too small by that much. Both
    corrections vanish as n grows. z is longer still by (2.5 / n)^2 of itself, 4 % with twelve edits and 0.2 % with
    sixty: calibrated in simulation, as Loh, "Calibrating Confidence Coefficients", 1987, so that skewed values of ten
    edits are covered in 93 of 100 data sets. Both ends are resampled values, so no interval leaves the range that the
    edits can give. The ends are withheld with fewer than `MIN_EDITS` edits, and where fewer than `MIN_DIFFERENT` of
    them, left out, make another difference than leaving out any other: then next to nothing is known of the spread.
    """
    statistics_kw = np.asarray(statistics_kw, dtype=float)
    observed_k, left_out_kn = statistics_kw[:, 0], statistics_kw[:, 1 : 1 + num_edits]
    if num_edits < MIN_EDITS:
        return [Interval(float(value), None, None, TOO_FEW_EDITS) for value in observed_k]
    sorted_kr = np.sort(statistics_kw[:, 1 + num_edits :], axis=1)
    num_resamples = sorted_kr.shape[1]

    rounding_k1 = 1e-12 * np.abs(statistics_kw).max(axis=1, keepdims=True)  # a constant is no resample's neighbour
    below_k = (sorted_kr < observed_k[:, None] - rounding_k1).mean(axis=1)
    above_k = (sorted_kr > observed_k[:, None] + rounding_k1).mean(axis=1)
    edge = 1 / (num_resamples + 1)
    bias_k = ndtri(np.clip((1 + below_k - above_k) / 2, edge, 1 - edge))
    slopes_kn = left_out_kn.mean(axis=1, keepdims=True) - left_out_kn
    slopes_kn[np.abs(slopes_kn) <= rounding_k1] = 0.0
    differ_k = (np.abs(left_out_kn - np.median(left_out_kn, axis=1, keepdims=True)) > rounding_k1).sum(axis=1)
    spread_k = (slopes_kn**2).sum(axis=1) ** 1.5
    acceleration_k = np.divide((slopes_kn**3).sum(axis=1), 6 * spread_k, out=np.zeros_like(bias_k), where=spread_k > 0)
    reach = np.sqrt(num_edits / (num_edits - 1)) * stdtrit(num_edits - 1, (1 + level) / 2)
    reach *= 1 + (2.5 / num_edits) ** 2

    def end(sign: int) -> np.ndarray:
        shifted_k = bias_k + sign * reach
        share_k = ndtr(bias_k + shifted_k / np.maximum(1 - acceleration_k * shifted_k, 1e-9))
        place_k = share_k * (num_resamples - 1)
        left_k = (
            np.minimum(place_k.astype(int), num_resamples - 2) if num_resamples > 1 else np.zeros_like(place_k, int)
        )
        between_k = place_k - left_k
        rows = np.arange(len(sorted_kr))
        right_k = np.minimum(left_k + 1, num_resamples - 1)
        return (1 - between_k) * sorted_kr[rows, left_k] + between_k * sorted_kr[rows, right_k]

    return [
        Interval(float(mean), float(low), float(high)) if known else Interval(float(mean), None, None, TOO_FEW_DIFFER)
        for mean, low, high, known in zip(observed_k, end(-1), end(+1), differ_k >= MIN_DIFFERENT, strict=True)
    ]


def sides(found: Sequence[Interval], statistics_kw: np.ndarray, num_edits: int, level: float = 0.95) -> list[int]:
    """Returns on which side of zero each statistic lies for sure, 1 or -1; 0 where that is not sure.

    found: of `intervals` at that level, of these statistics. A statistic lies where its interval does. Where that is
    withheld, it lies where at least `least_edits` of the edits do, and none on the other side: by the exact sign test
    (Dixon and Mood, "The Statistical Sign Test", 1946). An edit lies where its jackknife pseudo-value does; of a mean
    that is its value.
    """
    statistics_kw = np.asarray(statistics_kw, dtype=float)
    observed_k1, left_out_kn = statistics_kw[:, :1], statistics_kw[:, 1 : 1 + num_edits]
    values_kn = num_edits * observed_k1 - (num_edits - 1) * left_out_kn
    rounding_k1 = 1e-12 * num_edits * np.abs(statistics_kw).max(axis=1, keepdims=True)
    above_k, below_k = (values_kn > rounding_k1).sum(axis=1), (values_kn < -rounding_k1).sum(axis=1)
    enough = least_edits(1 - level)
    by_sign_k = ((above_k >= enough) & (below_k == 0)).astype(int) - ((below_k >= enough) & (above_k == 0))
    return [
        int(by_sign) if interval.withheld else interval.above_zero - interval.below_zero
        for interval, by_sign in zip(found, by_sign_k, strict=True)
    ]


def mean_intervals(values_ek: np.ndarray, weights_we: np.ndarray, level: float = 0.95) -> list[Interval]:
    """Returns `intervals` of each column's mean over edits, from one value an edit, `[edits, columns]`, and
    `edit_weights`. Columns share the resamples, so they are paired."""
    values_ke = np.ascontiguousarray(np.asarray(values_ek, dtype=float).T)
    chunks = (values_ke[start : start + COLUMNS_AT_ONCE] for start in range(0, len(values_ke), COLUMNS_AT_ONCE))
    return [one for chunk in chunks for one in intervals(chunk @ weights_we.T, weights_we.shape[1], level)]


def bootstrap_intervals(values_ek: np.ndarray, weights_re: np.ndarray, level: float = 0.95) -> list[Interval]:
    """Returns `mean_intervals` from resamples of `bootstrap_weights`."""
    return mean_intervals(values_ek, with_jackknife(weights_re), level)


def sign_flip_p(differences_ek: np.ndarray, resamples: int, generator: np.random.Generator) -> np.ndarray:
    """Returns the two-sided p of each column's mean being zero, `[columns]`, by flipping the signs of whole edits.

    The paired randomisation test (Fisher, "The Design of Experiments", 1935, section 21), of `skew_corrected_t`: exact
    where differences are symmetric about zero, as with any statistic, and nearer to its level than with the mean where
    they are skewed. Where n edits have no more than `resamples` patterns of signs, up to a flip of all, every pattern
    is counted once, so the least p is 2^(1 - n). Otherwise patterns are drawn, and the observed one counts among them
    (Phipson and Smyth 2010), so p is never 0.
    """
    differences_ek = np.asarray(differences_ek, dtype=float)
    num_edits = len(differences_ek)
    scale_k = np.sqrt((differences_ek**2).mean(axis=0))
    units_ek = np.divide(differences_ek, scale_k, out=np.zeros_like(differences_ek), where=scale_k > 0)
    observed_k = np.abs(skew_corrected_t(units_ek.mean(axis=0), (units_ek**3).mean(axis=0))) * (1 - 1e-6)
    patterns = 1 << (num_edits - 1)
    drawn = patterns > resamples
    as_extreme_k = np.zeros(units_ek.shape[1], dtype=int)
    for start in range(0, min(patterns, resamples), FLIPS_AT_ONCE):
        count = min(FLIPS_AT_ONCE, min(patterns, resamples) - start)
        if drawn:
            flipped_re = generator.integers(0, 2, size=(count, num_edits), dtype=np.int8)
        else:
            flipped_re = np.arange(start, start + count)[:, None] >> np.arange(num_edits) & 1
        signs_re = (1.0 - 2.0 * flipped_re) / num_edits
        as_extreme_k += (np.abs(skew_corrected_t(signs_re @ units_ek, signs_re @ units_ek**3)) >= observed_k).sum(
            axis=0
        )
    return (drawn + as_extreme_k) / (drawn + min(patterns, resamples))


def skew_corrected_t(means: np.ndarray, third_moments: np.ndarray) -> np.ndarray:
    """Returns the mean over standard deviation, transformed so that skewness shifts and bends its distribution less.

    Both moments are about zero, of values whose mean square is 1. With S = mean / deviation and skewness g it is
    S + g S^2 / 3 + g^2 S^3 / 27, monotone in S: Hall, "On the Removal of Skewness by Transformation", 1992, without the
    constant. Values that do not vary are taken to vary by a thousandth of their size.
    """
    variances = np.maximum(1 - means**2, 1e-6)
    bent = (third_moments - 3 * means + 2 * means**3) * means / (9 * variances**2)  # g S / 9
    return means / np.sqrt(variances) * (1 + 3 * bent * (1 + bent))


def adjusted_p(
    columns: Sequence[np.ndarray], resamples: int, generator_of: Callable[[int], np.random.Generator]
) -> np.ndarray:
    """Returns p of `sign_flip_p` of each column's mean being zero, adjusted by `holm` over all columns of a table.

    columns: the differences of each edit, `[edits]`; columns of one number of edits share their flips. generator_of:
    number of edits -> what draws them. Each p is multiplied by what `times_counted` says.
    """
    p_values = np.ones(len(columns))
    for num_edits in dict.fromkeys(map(len, columns)):
        places = [i for i, column in enumerate(columns) if len(column) == num_edits]
        p_values[places] = sign_flip_p(
            np.column_stack([columns[i] for i in places]), resamples, generator_of(num_edits)
        )
    return holm(np.minimum(p_values * times_counted(columns), 1.0))


def times_counted(columns: Sequence[np.ndarray]) -> np.ndarray:
    """Returns how often p of each column of a table counts, int `[columns]`; columns as of `adjusted_p`.

    Few edits hide the skewness of their own column, and the sign test of skewed differences rejects too often, but a
    table shows it: where its columns of fewer than `MANY_EDITS` edits are `skewed`, their p counts `SKEWED_COUNTS`
    times, and else once. `docs/statistics.md` has what that does to level and power.
    """
    few_k = np.array([len(column) < MANY_EDITS for column in columns], dtype=bool)
    counts = SKEWED_COUNTS if skewed([column for column, few in zip(columns, few_k, strict=True) if few]) else 1
    return np.where(few_k, counts, 1)


def skewed(columns: Sequence[np.ndarray]) -> bool:
    """Returns whether columns, `[edits]` each, are more skewed than normal values would be: whether their mean squared
    skewness is over `SKEWED` times what it is of as many normal values, 6 (n - 2) / ((n + 1) (n + 3)) (Fisher, "The
    Moments of the Distribution for Normal Samples of Measures of Departure from Normality", 1930). Columns of two
    edits, or without spread, have no skewness and do not count."""
    shares = []
    for column in columns:
        num_edits, centred = len(column), column - column.mean()
        variance = float((centred**2).mean())
        if num_edits > 2 and variance > 1e-24 * float((column**2).mean()):
            skewness = float((centred**3).mean()) / variance**1.5
            shares.append(skewness**2 / (6 * (num_edits - 2) / ((num_edits + 1) * (num_edits + 3))))
    return bool(shares) and float(np.mean(shares)) > SKEWED


def holm(p_values: np.ndarray) -> np.ndarray:
    """Returns Holm's step-down adjusted p-values (Holm 1979), in the order given: reject those at or below the wanted
    level."""
    p_values = np.asarray(p_values, dtype=float)
    order = np.argsort(p_values, kind="stable")
    stepped = p_values[order] * np.arange(len(p_values), 0, -1)
    adjusted = np.empty_like(p_values)
    adjusted[order] = np.minimum(np.maximum.accumulate(stepped), 1.0)
    return adjusted


def edits_needed(mean: float, deviation: float, level: float = 0.05, power: float = 0.8) -> float:
    """Returns the number of edits at which a two-sided test at a level finds a mean over edits with this power, if mean
    and standard deviation over edits stay what they are: ((z(1 - level / 2) + z(power)) * deviation / mean)^2.

    Of a normal, as in Cohen, "Statistical Power Analysis for the Behavioral Sciences", 1988. Infinite of a mean of 0.
    """
    if mean == 0:
        return math.inf
    return float(((ndtri(1 - level / 2) + ndtri(power)) * deviation / mean) ** 2)


def least_edits(level: float) -> int:
    """Returns the least number of edits at which the exact sign-flip test can reach a level: its least p is 2^(1 -
    n)."""
    return 1 + math.ceil(-math.log2(level) - 1e-9)


def deviation_of(statistic_w: np.ndarray, num_edits: int) -> float:
    """Returns the standard deviation over edits of a statistic's jackknife pseudo-values, from its values under the
    rows of `edit_weights`; of a mean over edits that is the sample standard deviation of the edits."""
    return float(statistic_w[1 : 1 + num_edits].std() * (num_edits - 1) * math.sqrt(num_edits / (num_edits - 1)))


def seed_spread(table: pd.DataFrame) -> pd.Series:
    """Returns for each column of a table of (category, edit, seed) rows without gaps the sample standard deviation over
    the seeds of the mean over edits.

    Only edits that have all seeds of the table count, so that the seeds are compared on the same edits. NaN with one
    seed, and where no edit has all seeds.
    """
    edit_n, _ = _edits_of(table.index)
    seed_n = table.index.get_level_values("seed").to_numpy()
    complete = np.bincount(edit_n)[edit_n] == len(np.unique(seed_n))
    return table[complete].groupby(seed_n[complete]).mean().reindex(columns=table.columns).std(ddof=1)
