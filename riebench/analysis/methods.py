"""Methods are set beside each other on the same cases: scores, gains over no intervention, spread over seeds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict

import numpy as np
import pandas as pd

from riebench.analysis.statistics import adjusted_p, edit_means, mean_intervals, seed_spread
from riebench.core.scores import NOOP, Setting

#: Sign flips for each cell of a table. Holm multiplies the least p, 1 / flips, by the number of cells: no adjusted p is
#: above 1 % for want of flips, however large the table.
FLIPS_PER_CELL = 100


def method_rows(
    tables: Mapping[str, pd.DataFrame],
    cases: pd.MultiIndex,
    settings: Sequence[Setting],
    edit_weights: Callable[[int], np.ndarray],
    generator: np.random.Generator,
) -> list[dict]:
    """Returns a row for each setting: `scores`, `gains` over no-op with Holm's p over all cells of the table,
    `seed_spread`, and `counted`: score -> number of cases, of a score that not all of them have.

    tables: of `score_tables`. edit_weights: number of edits -> `statistics.edit_weights`. All settings on most blocks
    are compared on the cases that have a score under every one of them that has it at all, and those on fewer blocks
    on the cases that also all of these have it on; where no-op has it not, as a direction where nothing changes, there
    are no gains. A number that does not exist is None: the ends of an interval that is withheld, and
    p of one edit.
    """
    edits = cases.droplevel("seed").nunique()
    none = dict.fromkeys(tables)
    rows = [
        {**setting._asdict(), "edits": edits, "cases": len(cases)}
        | {"scores": dict(none), "gains": dict(none), "seed_spread": dict(none), "counted": {}}
        for setting in settings
    ]
    noop = next(i for i, setting in enumerate(settings) if setting.method == NOOP)
    first = next(iter(tables.values()))
    inside, columns = np.flatnonzero(first.index.isin(cases)), first.columns.get_indexer(list(settings))
    values = {score: whole.to_numpy()[np.ix_(inside, columns)] for score, whole in tables.items()}
    alike: dict[tuple, list[str]] = {}
    for score, values_cs in values.items():
        for shown, complete in _compared(~np.isnan(values_cs), settings):
            if not complete.all():
                for i in shown:
                    rows[i]["counted"][score] = int(complete.sum())
            at_rest = not np.isnan(values_cs[complete, noop]).any()
            alike.setdefault((tuple(shown), complete.tobytes(), at_rest), []).append(score)
    tested: list[tuple[str, int, dict, np.ndarray]] = []
    for (shown, as_bytes, at_rest), scores in alike.items():
        complete = np.frombuffer(as_bytes, dtype=bool)
        if complete.any():
            placed = {score: values[score][complete] for score in scores}
            tested += _fill(rows, placed, first.index[inside[complete]], shown, noop if at_rest else None, edit_weights)
    order = list(tables)
    tested.sort(key=lambda cell: (order.index(cell[0]), cell[1]))
    _add_p([(cell, column) for _, _, cell, column in tested], generator)
    return rows


def _fill(
    rows: Sequence[dict],
    values: Mapping[str, np.ndarray],
    cases: pd.MultiIndex,
    shown: Sequence[int],
    noop: int | None,
    edit_weights: Callable[[int], np.ndarray],
) -> list[tuple[str, int, dict, np.ndarray]]:
    """Puts means, spreads and gains of scores that are compared on the same cases into the rows of settings, and
    returns (score, setting, cell, gain of each edit) for each gain.

    values: score -> `[cases, settings]`. shown: the settings whose rows are filled. noop: the setting that gains are
    over; None where there are none. All scores are computed together.
    """
    with_noop = [*shown, *([] if noop is None or noop in shown else [noop])]
    labels = [(score, i) for score in values for i in with_noop]
    table = pd.DataFrame(np.hstack([values_cs[:, with_noop] for values_cs in values.values()]), cases)
    values_ek, spreads = edit_means(table).to_numpy(), seed_spread(table).to_numpy()
    weights_we = edit_weights(len(values_ek))
    for (score, i), found, spread in zip(labels, mean_intervals(values_ek, weights_we), spreads, strict=True):
        if i in shown:
            rows[i]["scores"][score] = asdict(found)
            rows[i]["seed_spread"][score] = None if np.isnan(spread) else float(spread)
    changed = [(place, *label) for place, label in enumerate(labels) if label[1] != noop]
    if noop is None or not changed:
        return []
    at_rest = [labels.index((score, noop)) for _, score, _ in changed]
    gains_ek = values_ek[:, [place for place, _, _ in changed]] - values_ek[:, at_rest]
    filled = []
    for (_, score, i), found, column in zip(changed, mean_intervals(gains_ek, weights_we), gains_ek.T, strict=True):
        cell = rows[i]["gains"][score] = asdict(found) | {"p_holm": None}
        filled.append((score, i, cell, column))
    return filled


def _compared(there_cs: np.ndarray, settings: Sequence[Setting]) -> list[tuple[list[int], np.ndarray]]:
    """Returns which settings are shown on which cases, (places of settings, `[cases]`); together where these are the
    same. there_cs: whether a case has the score under a setting, `[cases, settings]`."""
    scored = np.flatnonzero(there_cs.any(axis=0)).tolist()
    most = max(setting.blocks.count("+") for setting in settings)
    whole = [i for i in scored if settings[i].blocks == "" or settings[i].blocks.count("+") == most]
    of_whole, of_all = (np.all(there_cs[:, places], axis=1) for places in (whole, scored))
    if np.array_equal(of_whole, of_all):
        return [(scored, of_all)] if scored else []
    found = [(whole, of_whole), ([i for i in scored if i not in whole], of_all)]
    return [(places, complete) for places, complete in found if places]


def _add_p(cells: Sequence[tuple[dict, np.ndarray]], generator: np.random.Generator) -> None:
    """Puts `p_holm` into cells, given with the differences of each edit, but those of a single edit."""
    tested = [(cell, column) for cell, column in cells if len(column) > 1]
    columns = [column for _, column in tested]
    p_values = adjusted_p(columns, FLIPS_PER_CELL * len(columns), lambda num_edits: generator)
    for (cell, _), p in zip(tested, p_values, strict=True):
        cell["p_holm"] = float(p)
