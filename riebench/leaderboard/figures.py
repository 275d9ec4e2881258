"""All that an entry says of its per-case scores, from those scores: submit writes it, validate compares with it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from riebench.analysis.summary import block_effects, method_tables
from riebench.core.errors import UserError
from riebench.core.scores import CASE, NOOP, SETTING, Setting
from riebench.edits.edit import CATEGORY_NAMES

#: Bootstrap resamples behind every interval of an entry (protocol section 8), and the seed of their generator.
RESAMPLES, SEED = 10_000, 0
#: Which cases are shown as pictures.
CHOSEN = "of each category the first edit by sha256 of its id that has a valid case, with its lowest seed"


def figures_of(frame: pd.DataFrame, setting: Setting, blocks: Sequence[str], resamples: int, seed: int) -> dict:
    """Returns `aggregates`, `dominance`, `failures` and the part of `cost` that an entry's scores tell.

    setting: the method on all blocks. Aggregates are of the cases that are valid for it and for no intervention, block
    effects of those that are valid for every subset of the blocks. Raises `UserError` where no case is.
    """
    rows = _rows(frame, setting)
    whole = rows[rows["blocks"].isin((setting.blocks, ""))]
    tables, failures = method_tables(whole, resamples=resamples, seed=seed)
    own = whole[(whole["method"] == setting.method) & (whole["status"] == "ok")]
    return {
        "aggregates": {
            "overall": _row(tables["methods"], setting),
            "categories": {name: _row(of, setting) for name, of in tables["methods_by_category"].items()},
        },
        "dominance": _dominance(rows, setting, blocks, resamples, seed),
        "failures": {name: failures[name] for name in tables["methods_by_category"] if name in failures},
        "cost": {"num_features": _mean(own["num_features"]), "injected_norm": _mean(own["injected_norm"])},
    }


def choose_cases(frame: pd.DataFrame, setting: Setting) -> list[tuple[str, str, int]]:
    """Returns the cases (category, edit, seed) whose pictures an entry shows: see `CHOSEN`. No score is looked at."""
    rows = _rows(frame, setting)
    rows = rows[rows["blocks"].isin((setting.blocks, "")) & (rows["status"] == "ok")]
    needed = len({setting.method, NOOP})
    passed = rows.groupby(CASE, sort=False)["method"].nunique()
    cases = sorted(passed[passed == needed].index, key=lambda case: (_digest(case[1]), case[2]))
    first = {category: (str(category), str(edit), int(seed)) for category, edit, seed in reversed(cases)}
    return [first[category] for category in dict.fromkeys((*CATEGORY_NAMES, *first)) if category in first]


def case_scores(frame: pd.DataFrame, setting: Setting, case: tuple[str, str, int], names: Sequence[str]) -> dict:
    """Returns metric -> value of one case, without those that are undefined there."""
    rows = frame[(frame[SETTING] == list(setting)).all(axis=1) & (frame[CASE] == list(case)).all(axis=1)]
    return {name: float(value) for name, value in rows.iloc[0][list(names)].items() if not np.isnan(value)}


def sees_edited_image(method: Mapping) -> bool:
    """Returns whether a method is told what the edited image is, by its settings in a run's manifest."""
    return bool(method.get("sees_edited_image", True))


def _rows(frame: pd.DataFrame, setting: Setting) -> pd.DataFrame:
    """Returns the rows of the method at its strength, on whatever blocks, and of no intervention."""
    of_method = (frame["method"] == setting.method) & (frame["strength"] == setting.strength)
    return frame[of_method | (frame["method"] == NOOP)]


def _row(rows: Sequence[dict], setting: Setting) -> dict:
    for row in rows:
        if (row["method"], row["strength"], row["blocks"]) == setting:
            return row
    raise UserError(f"{setting.method} failed on every case", remedy="mend that, then run again")


def _dominance(rows: pd.DataFrame, setting: Setting, blocks: Sequence[str], resamples: int, seed: int) -> dict | None:
    """Returns the table of block effects; None where the method was not run on enough subsets of the blocks."""
    if rows.loc[rows["method"] == setting.method, "blocks"].nunique() < 2:
        return None
    tables = block_effects(rows, blocks, method=setting.method, resamples=resamples, seed=seed)
    return tables[0] if tables else None


def _mean(values: pd.Series) -> float | None:
    mean = values.mean()
    return None if pd.isna(mean) else float(mean)


def _digest(edit: str) -> str:
    return hashlib.sha256(edit.encode()).hexdigest()
