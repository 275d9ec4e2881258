"""Paired statistics over edits: which cases count, bootstrap intervals, a randomisation test, Holm's correction.

A case is (edit, seed). The seeds of an edit are not independent of each other, so they are averaged first and the edit
is what is resampled.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from riebench.analysis.frames import CASE, SETTING, Setting

NOT_RUN = "not run"


@dataclass(frozen=True)
class Interval:
    """A mean and the ends of its interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class ValidCases:
    """The cases on which every one of a set of settings succeeded, and the others with the reason why not."""

    cases: pd.MultiIndex
    """Levels category, edit, seed."""

    failed: pd.DataFrame
    """Columns category, edit, seed, reason; one row a case that some setting failed on."""

    def failures(self) -> dict[str, dict[str, int]]:
        """Category -> reason -> number of cases."""
        return {
            category: {str(reason): int(count) for reason, count in group["reason"].value_counts().items()}
            for category, group in self.failed.groupby("category", sort=False)
        }


def valid_cases(frame: pd.DataFrame, settings: Iterable[Setting]) -> ValidCases:
    """The intersection of the cases that each setting has an "ok" row for, out of all the frame's cases.

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
    """Averages a table of (category, edit, seed) rows over the seeds of each edit: rows (category, edit)."""
    return table.groupby(level=["category", "edit"], sort=False).mean()


def bootstrap_weights(num_edits: int, resamples: int, generator: np.random.Generator) -> np.ndarray:
    """Resamples of `num_edits` edits with replacement, as weights `[resamples, num_edits]` whose rows sum to one."""
    return generator.multinomial(num_edits, np.full(num_edits, 1 / num_edits), size=resamples) / num_edits


def bootstrap_intervals(values_ek: np.ndarray, weights_re: np.ndarray, level: float = 0.95) -> list[Interval]:
    """Percentile bootstrap interval of each column's mean over edits; columns share the resamples, so they are paired.

    `values_ek` is `[edits, columns]`, one value an edit; `weights_re` comes from `bootstrap_weights`. With one edit all
    resamples are that edit, and low = mean = high. Percentile interval: Efron, "Bootstrap Methods: Another Look at the
    Jackknife", 1979; Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, section 13.3.
    """
    values_ek = np.asarray(values_ek, dtype=float)
    tail = (1 - level) / 2
    lows, highs = np.quantile(weights_re @ values_ek, [tail, 1 - tail], axis=0)
    means = values_ek.mean(axis=0)
    return [Interval(float(m), float(lo), float(hi)) for m, lo, hi in zip(means, lows, highs, strict=True)]


def sign_flip_p(differences_ek: np.ndarray, resamples: int, generator: np.random.Generator) -> np.ndarray:
    """Two-sided p of each column's mean being zero, `[columns]`, by flipping the signs of whole edits at random.

    The paired randomisation test (Fisher, "The Design of Experiments", 1935, section 21), with the observed sample
    counted among the resamples (Phipson and Smyth 2010), so p is never 0 and a single edit gives 1.
    """
    differences_ek = np.asarray(differences_ek, dtype=float)
    num_edits = len(differences_ek)
    signs_re = generator.integers(0, 2, size=(resamples, num_edits)) * 2.0 - 1.0
    observed = np.abs(differences_ek.mean(axis=0))
    flipped = np.abs(signs_re @ differences_ek) / num_edits
    as_extreme = (flipped >= observed - 1e-12).sum(axis=0)
    return (1 + as_extreme) / (1 + resamples)


def holm(p_values: np.ndarray) -> np.ndarray:
    """Holm's step-down adjusted p-values (Holm 1979), in the order given: reject those at or below the wanted level."""
    p_values = np.asarray(p_values, dtype=float)
    order = np.argsort(p_values, kind="stable")
    stepped = p_values[order] * np.arange(len(p_values), 0, -1)
    adjusted = np.empty_like(p_values)
    adjusted[order] = np.minimum(np.maximum.accumulate(stepped), 1.0)
    return adjusted
