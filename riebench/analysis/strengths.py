"""The strength of a method is chosen on one half of the edits and reported on the other.

The best of a sweep, chosen and reported on the same edits by the same score, looks better than it is: the choice also
picks the strength whose noise was kind. Choosing on other edits takes that away.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import asdict

import numpy as np

from riebench.analysis.frontier import Sweep
from riebench.analysis.statistics import mean_intervals

HALVES = ("first half", "second half")


def in_first_half(edit: str) -> bool:
    """Returns whether an edit belongs to the first half: by a digest of its id, whatever else is run."""
    return hashlib.sha256(edit.encode()).digest()[0] < 128


def chosen_strengths(sweep: Sweep, edit_weights: Callable[[int], np.ndarray]) -> dict | None:
    """Returns the strength with the best mean gain on each half; gain and cost of each half under the other's choice.

    `gain` and `cost` are means over all edits, each under the strength chosen on the half that it is not in;
    `optimistic_gain` is that of the strength that is best on all edits. Intervals are over edits, with the choice held.
    Of equally good strengths the least is chosen. edit_weights: number of edits -> `statistics.edit_weights`. None
    where a half has no edit.
    """
    first_e = np.array([in_first_half(edit) for edit in sweep.edits])
    if first_e.all() or not first_e.any():
        return None
    best = {
        half: int(sweep.gains_se[:, mine_e].mean(axis=1).argmax())
        for half, mine_e in zip(HALVES, (first_e, ~first_e), strict=True)
    }
    chosen_e = np.where(first_e, best[HALVES[1]], best[HALVES[0]])
    every = np.arange(len(sweep.edits))
    optimistic_e = sweep.gains_se[sweep.gains_se.mean(axis=1).argmax()]
    columns = np.stack([sweep.gains_se[chosen_e, every], sweep.costs_se[chosen_e, every], optimistic_e], axis=1)
    gain, cost, optimistic = map(asdict, mean_intervals(columns, edit_weights(len(every))))
    return {
        "strengths": list(sweep.strengths),
        "chosen": {half: sweep.strengths[index] for half, index in best.items()},
        "gain": gain,
        "cost": cost,
        "optimistic_gain": optimistic,
    }
