"""Edit gain is set against preservation cost as the strength of a method rises: curves, gain at matched cost, and what
lies under them.

A curve joins the points (mean cost, mean gain) of a method's strengths by straight lines in the order of their cost,
from the no-op at (0, 0) on. A point on such a line is had by using either strength on its share of the edits, so it is
within reach. All quantities are functions of means over edits: their intervals come from the same resamples, the costs
moving with the gains.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd

from riebench.analysis.dominance import COST, GAIN
from riebench.analysis.statistics import edit_means, intervals
from riebench.core.scores import NOOP, Setting

#: Costs at which methods are compared, as shares of the largest cost that two of them reach.
MATCHED = (1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6)


@dataclass(frozen=True)
class Sweep:
    """A method at several strengths on the same edits."""

    method: str
    strengths: tuple[float, ...]
    """Rising."""
    edits: tuple[str, ...]
    gains_se: np.ndarray
    """`[strengths, edits]`: gain in `GAIN` over no intervention, averaged over the seeds of an edit."""
    costs_se: np.ndarray
    """The same of `COST`."""


def sweeps_of(
    tables: Mapping[str, pd.DataFrame], cases: pd.MultiIndex, settings: Sequence[Setting], blocks: Sequence[str]
) -> list[Sweep]:
    """Returns the sweep of each method that was run on all blocks at several strengths, in the order of `settings`;
    none without a case.

    tables: of `score_tables`.
    """
    whole = ("", "+".join(blocks))
    found: dict[str, list[Setting]] = {setting.method: [] for setting in settings if setting.method != NOOP}
    for setting in sorted(settings, key=lambda setting: setting.strength):
        if setting.blocks in whole and setting.method != NOOP:
            found[setting.method].append(setting)
    several = {method: swept for method, swept in found.items() if len(swept) > 1}
    if not several or not len(cases):
        return []
    means = {}
    for score in (GAIN, COST):
        table = tables[score][tables[score].index.isin(cases)]
        means[score] = edit_means(table.sub(table.xs(NOOP, axis=1, level="method").mean(axis=1), axis=0))
    edits = tuple(means[GAIN].index.get_level_values("edit"))
    return [
        Sweep(
            method,
            tuple(setting.strength for setting in swept),
            edits,
            *(means[score][swept].to_numpy().T for score in (GAIN, COST)),
        )
        for method, swept in several.items()
    ]


def curves(sweeps: Sequence[Sweep], edit_weights: Callable[[int], np.ndarray]) -> dict[str, dict]:
    """Returns method -> `points`, `at_cost`, `area` and `hypervolume`, with intervals over edits.

    edit_weights: number of edits -> `statistics.edit_weights`. Gain at matched cost is None where the curve does not
    reach that cost. Areas are up to the largest cost that two methods reach (or the only method), and the
    hypervolume's reference is the largest mean cost of all points, so both compare the methods of one call alone.
    """
    weighed = [[of_se @ edit_weights(len(s.edits)).T for of_se in (s.gains_se, s.costs_se)] for s in sweeps]
    furthest = sorted((costs_sw[:, 0].max() for _, costs_sw in weighed), reverse=True)[:2]
    return {
        sweep.method: _curve(sweep.strengths, len(sweep.edits), gains_sw, costs_sw, furthest[-1], furthest[0])
        for sweep, (gains_sw, costs_sw) in zip(sweeps, weighed, strict=True)
    }


def _curve(
    strengths: Sequence[float],
    num_edits: int,
    gains_sw: np.ndarray,
    costs_sw: np.ndarray,
    limit: float,
    reference: float,
) -> dict:
    points = zip(strengths, intervals(gains_sw, num_edits), intervals(costs_sw, num_edits), strict=True)
    at_cost = []
    for cost in (share * limit for share in MATCHED):
        reached = 0 < cost <= costs_sw[:, 0].max()
        found = intervals(gain_at(costs_sw, gains_sw, cost)[None], num_edits)[0] if reached else None
        at_cost.append({"cost": float(cost), "gain": found and asdict(found)})
    under = np.stack([area(costs_sw, gains_sw, limit), hypervolume(costs_sw, gains_sw, reference)])
    of_area, of_hypervolume = intervals(under, num_edits)
    return {
        "points": [{"strength": s, "gain": asdict(gain), "cost": asdict(cost)} for s, gain, cost in points],
        "at_cost": at_cost,
        "area": asdict(of_area),
        "hypervolume": asdict(of_hypervolume),
    }


def gain_at(costs_sw: np.ndarray, gains_sw: np.ndarray, cost: float) -> np.ndarray:
    """Returns the gain of the curve at a cost, `[w]`; behind its last point, that point's. Both arrays are
    `[strengths, w]`."""
    costs_pw, gains_pw = _path(costs_sw, gains_sw)
    gain_w = gains_pw[-1].copy()
    for (c0, c1), (g0, g1) in zip(_pairs(costs_pw), _pairs(gains_pw), strict=True):
        inside = (c0 <= cost) & (cost < c1)
        gain_w[inside] = (g0 + (g1 - g0) * _share(cost, c0, c1))[inside]
    return gain_w


def area(costs_sw: np.ndarray, gains_sw: np.ndarray, limit: float) -> np.ndarray:
    """Returns the mean over all costs c from 0 to `limit` of the best gain that the curve has at a cost of at most c,
    `[w]`.

    In the unit of gain, and never negative, for nothing need be done. 0 where the limit is 0.
    """
    costs_pw, gains_pw = _path(costs_sw, gains_sw)
    total_w, best_w = np.zeros(costs_pw.shape[1]), np.zeros(costs_pw.shape[1])
    for (c0, c1), (g0, g1) in zip(_pairs(costs_pw), _pairs(gains_pw), strict=True):
        end = np.minimum(c1, limit)
        g_end = g0 + (g1 - g0) * _share(end, c0, c1)
        width_w = np.maximum(end - c0, 0)
        rising = width_w * (1 - _share(best_w, g0, g_end)) * (g_end > best_w)  # the part above the best so far
        total_w += width_w * best_w + rising * (g_end - best_w) / 2
        best_w = np.where(width_w > 0, np.maximum(best_w, g_end), best_w)
        best_w = np.where(c1 <= limit, np.maximum(best_w, g1), best_w)  # a step straight up has no width
    total_w += np.maximum(limit - costs_pw[-1], 0) * best_w
    return total_w / limit if limit > 0 else total_w


def hypervolume(costs_sw: np.ndarray, gains_sw: np.ndarray, reference: float) -> np.ndarray:
    """Returns the area of the points (cost, gain) that some strength is at least as good as in both, between gain 0 and
    the cost `reference`, `[w]`: the hypervolume indicator (Zitzler and Thiele, "Multiobjective Evolutionary
    Algorithms", 1999)."""
    costs_pw, gains_pw = _path(costs_sw, gains_sw)
    best_pw = np.maximum.accumulate(gains_pw, axis=0)
    widths_pw = np.diff(np.minimum(costs_pw, reference), axis=0, append=reference)
    return (widths_pw * best_pw).sum(axis=0)


def _path(costs_sw: np.ndarray, gains_sw: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the points of a curve by rising cost, behind (0, 0); a cost is never below 0."""
    order = np.argsort(costs_sw, axis=0, kind="stable")
    origin = np.zeros((1, costs_sw.shape[1]))
    costs_pw = np.vstack([origin, np.maximum(np.take_along_axis(costs_sw, order, axis=0), 0)])
    return costs_pw, np.vstack([origin, np.take_along_axis(gains_sw, order, axis=0)])


def _pairs(values_pw: np.ndarray) -> np.ndarray:
    return np.stack([values_pw[:-1], values_pw[1:]], axis=1)


def _share(at: np.ndarray | float, start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Returns how far `at` lies on the way from start to end, within [0, 1]; 0 where there is no way."""
    way = end - start
    return np.clip(np.divide(at - start, way, out=np.zeros_like(way), where=way != 0), 0, 1)
