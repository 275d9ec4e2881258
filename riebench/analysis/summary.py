"""The summary of a run has block effects by category, and methods on the cases that all of them are valid on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType

import numpy as np
import pandas as pd

from riebench.analysis.dominance import COST, GAIN, dominance_table, games_of
from riebench.analysis.failures import failure_sentences, failures_of, without_valid_case
from riebench.analysis.frames import one_of_each, score_tables, settings_of, validate_scores
from riebench.analysis.frontier import curves, sweeps_of
from riebench.analysis.methods import method_rows
from riebench.analysis.planted import planted_of, truth_lines
from riebench.analysis.statistics import ValidCases, edit_weights, valid_cases
from riebench.analysis.strengths import chosen_strengths
from riebench.analysis.verdicts import explanation, short, verdicts_of, withheld_lines
from riebench.core.errors import NothingValid, UserError
from riebench.core.scores import CASE, NOOP, SETTING, Score, Setting, score_words, scores_of
from riebench.core.text_tables import aligned

OVERALL = "overall"
TABLE_WIDTH = 120


def summarise(
    frame: pd.DataFrame,
    blocks: Sequence[str],
    *,
    method: str | Sequence[str] = "sae",
    resamples: int = 10_000,
    seed: int = 0,
    planted: Mapping[str, str] = MappingProxyType({}),
) -> dict:
    """Returns a summary of the scores of one run as a JSON-able dict; a number that does not exist is None.

    All tables use the cases on which every setting succeeded. A setting that failed on every case is left out of that
    intersection and listed under `left_out`; `failures` says of every method in how many cases it failed, and why
    (`failures_of`). `method` names the methods whose block effects come first under
    `dominance`, which has a table for every method and strength that was run on enough subsets of the blocks, and is
    empty where none was; the first table's verdicts are repeated under `overall` and `categories`. `planted`: category
    -> the block that is known to carry its edits; repeated in the summary for the categories of the frame. Raises
    `UserError` where the frame is not of the schema, mixes backbones, has no no-op, or no valid case.
    """
    blocks, of = tuple(blocks), _valid_part(frame, resamples, seed)
    dominance = _effects(of, blocks, method)
    tables, valid, kept, groups, weights = of.tables, of.valid, of.kept, of.groups, of.weights
    planned = of.frame[CASE].drop_duplicates()["category"]

    sweeps = {name: sweeps_of(tables, cases, kept, blocks) for name, cases in {OVERALL: valid.cases, **groups}.items()}
    traced = {name: curves(of_group, weights) for name, of_group in sweeps.items()}
    chosen = {sweep.method: chosen_strengths(sweep, weights) for sweep in sweeps[OVERALL]}

    failures = valid.failures()
    return {
        **dict(zip(("backbone", "steps", "mode"), one_of_each(of.frame), strict=True)),
        "blocks": list(blocks),
        "resamples": resamples,
        "seed": seed,
        "planned": len(planned),
        "failed": {str(reason): int(count) for reason, count in valid.failed["reason"].value_counts().items()},
        "scores": [score_words(score) for score in of.scores],
        "values": list(dominance[0]["overall"]["dominant"]) if dominance else [],
        "planted": {category: planted[category] for category in groups if category in planted},
        "dominance": dominance,
        "overall": _counts(valid.cases, dominance[0]["overall"] if dominance else None),
        "categories": {
            category: {
                "planned": int((planned == category).sum()),
                "failed": failures.get(category, {}),
                **_counts(cases, dominance[0]["categories"][category] if dominance else None),
            }
            for category, cases in groups.items()
        },
        **_method_tables(of, seed),
        "frontier": {"gain": GAIN, "cost": COST, "overall": traced.pop(OVERALL), "categories": traced},
        "chosen_strengths": {method: found for method, found in chosen.items() if found},
        "failures": failures_of(of.frame),
        "left_out": [
            {**Setting(*setting)._asdict(), "reason": str(rows["reason"].mode().iloc[0])}
            for setting, rows in of.frame.groupby(SETTING, sort=False)
            if setting not in kept
        ],
    }


def block_effects(
    frame: pd.DataFrame,
    blocks: Sequence[str],
    *,
    method: str | Sequence[str] = "sae",
    resamples: int = 10_000,
    seed: int = 0,
) -> list[dict]:
    """Returns what `summarise` has under `dominance`, without the rest. Raises `UserError` as it does."""
    return _effects(_valid_part(frame, resamples, seed), tuple(blocks), method)


def method_tables(frame: pd.DataFrame, *, resamples: int = 10_000, seed: int = 0) -> tuple[dict, dict]:
    """Returns (what `summarise` has under `methods` and `methods_by_category`, category -> failures), without the rest.
    Raises `UserError` as it does."""
    of = _valid_part(frame, resamples, seed)
    return _method_tables(of, seed), of.valid.failures()


def _method_tables(of: _ValidPart, seed: int) -> dict:
    def rows_of(cases: pd.MultiIndex) -> list[dict]:
        return method_rows(of.tables, cases, of.kept, of.weights, np.random.default_rng([seed, len(cases)]))

    return {
        "methods": rows_of(of.valid.cases),
        "methods_by_category": {category: rows_of(cases) for category, cases in of.groups.items()},
    }


@dataclass(frozen=True)
class _ValidPart:
    """The results of a run on the cases on which every setting succeeded."""

    frame: pd.DataFrame
    """All of the run, of the schema."""
    scores: tuple[Score, ...]
    kept: list[Setting]
    """The settings that did not fail on every case."""
    valid: ValidCases
    rows: pd.DataFrame
    """The valid part of the frame."""
    tables: dict[str, pd.DataFrame]
    """Score -> its table of the valid part."""
    groups: dict[str, pd.MultiIndex]
    """Category -> its valid cases."""
    weights: Callable[[int], np.ndarray]
    """Number of edits -> bootstrap weights, drawn once."""


def _valid_part(frame: pd.DataFrame, resamples: int, seed: int) -> _ValidPart:
    frame = validate_scores(frame)
    scores = scores_of(frame)
    one_of_each(frame)
    kept = settings_of(frame[frame["status"] == "ok"])
    if not any(setting.method == NOOP for setting in kept):
        lost = failure_sentences([one for one in failures_of(frame) if one["method"] == NOOP])
        if lost:
            raise NothingValid(f"no case is valid: {'; '.join(lost)}", remedy="mend that, then run again")
        raise UserError("the scores have no valid result of method 'noop'", remedy="add it to the run's methods")
    valid = valid_cases(frame, kept)
    if len(valid.cases) == 0:
        raise NothingValid(f"no case is valid under all settings; {_worst(valid)}", remedy="mend that, then run again")
    counts = pd.MultiIndex.from_frame(frame[CASE]).isin(valid.cases)
    counts &= pd.MultiIndex.from_frame(frame[SETTING]).isin(kept)
    rows = frame[counts]
    of_category = valid.cases.get_level_values("category")
    planned = frame[CASE].drop_duplicates()["category"]
    groups = {str(category): valid.cases[of_category == category] for category in planned.unique()}
    tables = score_tables(rows, [score.name for score in scores])
    weights = cache(lambda num_edits: edit_weights(num_edits, resamples, seed))
    return _ValidPart(frame, scores, kept, valid, rows, tables, groups, weights)


def _effects(of: _ValidPart, blocks: tuple[str, ...], method: str | Sequence[str]) -> list[dict]:
    """Returns the tables of block effects, those of the named methods first."""
    found: list[dict] = []
    for game in games_of(of.rows, blocks, (method,) if isinstance(method, str) else tuple(method)):
        cases = {OVERALL: of.valid.cases, **of.groups}
        effects = dominance_table(of.rows, of.tables, game, blocks, cases, of.weights)
        about = {"method": game.method, "strength": game.strength, "window": game.window}
        about |= {"estimator": game.coalitions.estimator, "subsets": len(game.settings)}
        found.append({**about, "overall": effects.pop(OVERALL), "categories": effects})
    return found


def load_summary(summary: dict) -> dict:
    """Returns the summary as it is. Raises `UserError` where `summarise` makes no such thing."""
    if not isinstance(summary, dict) or "methods_by_category" not in summary:
        raise UserError("this is not a run's summary", remedy="take the summary.json of a run")
    return summary


def block_table(summary: dict) -> str:
    """Returns the Shapley value of each block for the headline value by category, as plain text of at most 120 columns,
    beside it the planted block where it is known, and below it what to do where no block is named, and how many of the
    named blocks are the planted ones.

    Intervals are left out where there are too many blocks for that width.
    """
    if not summary["dominance"]:
        lost = ", ".join(without_valid_case(summary["failures"]))
        why = f"no case of {lost} is valid" if lost else "they need every subset of the blocks"
        return f"Block effects were not measured: {why}."
    value, blocks, headline = summary["values"][0], summary["blocks"], summary["dominance"][0]
    rows = {**headline["categories"], "all": headline["overall"]}
    verdicts, planted = verdicts_of(rows, value), planted_of(summary)

    def lines(with_intervals: bool) -> list[str]:
        cells = [["category", *blocks, "dominant block", *(["planted"] if planted else [])]]
        for name, row in rows.items():
            shapley = [row["effects"][value][block]["shapley"] if value in row["effects"] else None for block in blocks]
            truth = [planted.get(name, "-")] if planted else []
            cells.append([name, *(_cell(s, with_intervals) for s in shapley), short(verdicts[name][0]), *truth])
        return aligned(cells, right=range(1, 1 + len(blocks)), gap=" ")

    table, what = lines(with_intervals=True), "Shapley value of each block, 95 % interval over edits"
    if max(map(len, table)) > TABLE_WIDTH:
        table, what = lines(with_intervals=False), "Shapley value of each block"
    unit = "100 x gain in CLIP cosine with the edited prompt" if value == GAIN else f"100 x {value}"
    effects = [row["effects"].get(value, {}) for row in rows.values()]
    withheld = withheld_lines(one["shapley"]["withheld"] for of_blocks in effects for one in of_blocks.values())
    lines_below = [*withheld, *explanation({"": verdicts}), *truth_lines(summary)]
    return "\n".join([f"{what} ({unit})", *table, *lines_below])


def _counts(cases: pd.MultiIndex, effects: dict | None) -> dict:
    edits = cases.droplevel("seed").nunique()
    return {"edits": edits, "cases": len(cases), "dominant": effects["dominant"] if effects else {}}


def _worst(valid: ValidCases) -> str:
    reason, count = next(iter(valid.failed["reason"].value_counts().items()))
    return f"the most common reason, on {count} of {len(valid.failed)} cases, is {str(reason)!r}"


def _cell(shapley: dict | None, with_interval: bool) -> str:
    if shapley is None:
        return "-"
    mean = f"{100 * shapley['mean']:+.1f}"
    if not with_interval:
        return mean
    if shapley["withheld"]:
        return f"{mean} {shapley['withheld']}"
    return f"{mean} [{100 * shapley['low']:.1f},{100 * shapley['high']:.1f}]"
