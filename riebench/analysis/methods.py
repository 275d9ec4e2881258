"""Methods are set beside each other on the same cases: scores, gains over no intervention, spread over seeds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict

import numpy as np
import pandas as pd

from riebench.analysis.statistics import edit_means, holm, mean_intervals, seed_spread, sign_flip_p
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
    `seed_spread`.

    tables: of `score_tables`. edit_weights: number of edits -> `statistics.edit_weights`. All settings of a
    score are compared on the cases that have it under every setting that has it at all; where no-op has it not, as a
    direction where nothing changes, there are no gains. A number that does not exist is None.
    """
    edits = cases.droplevel("seed").nunique()
    none = dict.fromkeys(tables)
    rows = [
        {**setting._asdict(), "edits": edits, "cases": len(cases)}
        | {"scores": dict(none), "gains": dict(none), "seed_spread": dict(none)}
        for setting in settings
    ]
    noop = next(i for i, setting in enumerate(settings) if setting.method == NOOP)
    tested: dict[int, list[tuple[dict, np.ndarray]]] = {}
    first = next(iter(tables.values()))
    inside, columns = np.flatnonzero(first.index.isin(cases)), first.columns.get_indexer(list(settings))
    for score, whole in tables.items():
        values_cs = whole.to_numpy()[np.ix_(inside, columns)]
        there_cs = ~np.isnan(values_cs)
        scored = np.flatnonzero(there_cs.any(axis=0)).tolist()
        complete = there_cs[:, scored].all(axis=1)
        if not scored or not complete.any():
            continue
        table = pd.DataFrame(values_cs[complete][:, scored], first.index[inside[complete]])
        values_ek = edit_means(table).to_numpy()
        weights_we = edit_weights(len(values_ek))
        spreads = seed_spread(table)
        for i, found, spread in zip(scored, mean_intervals(values_ek, weights_we), spreads, strict=True):
            rows[i]["scores"][score] = asdict(found)
            rows[i]["seed_spread"][score] = None if np.isnan(spread) else float(spread)
        changed = [i for i in scored if i != noop] if noop in scored else []
        if not changed:
            continue
        differences_ek = values_ek[:, [scored.index(i) for i in changed]] - values_ek[:, [scored.index(noop)]]
        for i, found, column in zip(changed, mean_intervals(differences_ek, weights_we), differences_ek.T, strict=True):
            cell = rows[i]["gains"][score] = asdict(found)
            tested.setdefault(len(column), []).append((cell, column))
    _add_p(tested, generator)
    return rows


def _add_p(tested: Mapping[int, Sequence[tuple[dict, np.ndarray]]], generator: np.random.Generator) -> None:
    """Puts `p_holm` into cells, given with the differences of each edit, by number of edits."""
    cells = [cell for of_number in tested.values() for cell, _ in of_number]
    flips = FLIPS_PER_CELL * len(cells)
    p_values = [
        sign_flip_p(np.stack([column for _, column in of_number], axis=1), flips, generator)
        for of_number in tested.values()
    ]
    for cell, adjusted in zip(cells, holm(np.concatenate(p_values)) if cells else (), strict=True):
        cell["p_holm"] = float(adjusted)
