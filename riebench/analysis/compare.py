"""Methods of one run or several are compared with one of them on the same cases: better, worse or not separable."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from riebench.analysis.failures import failures_of
from riebench.analysis.frames import one_of_each, score_tables, settings_of
from riebench.analysis.run import Run
from riebench.analysis.statistics import (
    TOO_FEW_EDITS,
    Interval,
    ValidCases,
    adjusted_p,
    bootstrap_intervals,
    bootstrap_weights,
    edit_means,
    edits_needed,
    least_edits,
    times_counted,
    valid_cases,
)
from riebench.analysis.verdicts import MOST_EDITS, NOT_SEPARABLE, ONE_EDIT
from riebench.core.errors import UserError, did_you_mean
from riebench.core.files import named_path
from riebench.core.scores import CASE, NOOP, SETTING, Score, Setting, ids_digest, scores_of

#: What is compared where nothing is asked for, as far as the runs have it: of gain and of preservation, the headlines.
HEADLINES = (
    "clip_text_edited",
    "clip_directional",
    "lpips_original",
    "lpips_outside",
    "oracle_success",
    "oracle_preservation",
)
CONTROLS = (NOOP, "oracle-prompt")  # not what others are compared with, unless that is asked for
LEVEL = 0.05
#: Sign flips for each test of a table. The least p of n flips is 1 / (n + 1), and Holm multiplies it by the number of
#: tests, so that with a fixed n a large table could find nothing: 10,000 flips end at 500 tests.
FLIPS_PER_TEST = round(10 / LEVEL)
ALL = "all"
NOT_MEASURED = "not measured"
ABOVE = {"higher": "better", "lower": "worse", "neither": "higher"}
BELOW = {"higher": "worse", "lower": "better", "neither": "lower"}


@dataclass(frozen=True)
class _Run:
    """A finished run, with its results on all of its blocks alone."""

    label: str
    manifest: dict
    frame: pd.DataFrame
    scores: dict[str, Score]
    described: bool
    """Whether the frame says what network its scores come from."""


@dataclass(frozen=True)
class _Contender:
    """A method at a strength, as one run has it."""

    label: str
    run: str
    setting: Setting


def compare_runs(
    folders: Sequence[Path],
    *,
    methods: Sequence[str] = (),
    against: str = "",
    metrics: Sequence[str] = (),
    resamples: int = 10_000,
    seed: int = 0,
) -> dict:
    """Compares methods on all blocks with one of them, per category and over all, as a JSON-able dict.

    methods: names or labels, as `sae` for it at every strength, or `sae@2`; by default all. against: the label of a
    method in the table, or as `sae@2`; a name alone is that method at the strength nearest 1; by default the first of
    the methods that is no control, as the runs have them. It is compared with even where `methods` leave it out.
    metrics: by default `HEADLINES`. A method that two runs have with other results is labelled with its run.
    All is measured on the cases on which every one of these methods succeeded; a case on which a metric is undefined
    for one of a pair is dropped from that pair (`dropped`). `cells` has the mean difference over edits, with the seeds
    of an edit averaged, its 95 % interval, and the sign-flip p after Holm over the cells, of which those that are the
    same difference on the same edits, as a category and all of a run that has no other, count once (`tests`). Better
    and worse, higher and lower have p of at most `LEVEL`; of the others `edits_needed` is how many edits would be
    needed, as `_edits_needed` says. Raises `UserError` for a run that is not finished, runs that are not of the same
    edits, seeds, backbone, mode, precision, regions and metrics (where metrics are asked for: of those), naming all
    differences, for an unknown method or metric, and where no case is valid.
    """
    runs = _read_runs(folders)
    _refuse_differences(runs, metrics)
    contenders, frame = _contenders(runs)
    chosen = _choose_metrics(runs[0], metrics)
    contenders, base = _choose_methods(contenders, methods, against)
    frame = frame[frame["method"].isin([c.label for c in contenders])]

    kept = [c for c in contenders if (frame.loc[frame["method"] == c.label, "status"] == "ok").any()]
    if base not in kept:
        raise UserError(
            f"{base.label} failed on every case ({_reason(frame, base)})", remedy="compare with another method"
        )
    valid = valid_cases(frame, [_placed(c) for c in kept])
    if len(valid.cases) == 0:
        reason, count = next(iter(valid.failed["reason"].value_counts().items()))
        raise UserError(
            f"no case is valid under all methods; the most common reason, on {count} of {len(valid.failed)} cases, "
            f"is {str(reason)!r}",
            remedy="mend that, then run again",
        )
    backbone, steps, mode = one_of_each(frame)
    frame_valid = frame[pd.MultiIndex.from_frame(frame[CASE]).isin(valid.cases)]
    others, counts = [c for c in kept if c != base], _counts(frame, valid)
    cells = _cells(frame_valid, list(counts["categories"]), base, others, chosen)
    tests = _judge(cells, chosen, resamples, seed)
    failures = [{key: value for key, value in one.items() if key != "strength"} for one in failures_of(frame)]
    return {
        "runs": [run.label for run in runs],
        "backbone": backbone,
        "steps": steps,
        "mode": mode,
        "dtype": str(frame["dtype"].iloc[0]),
        "seeds": sorted(int(s) for s in frame["seed"].unique()),
        "edits": int(frame["edit"].nunique()),
        "asked": list(methods),
        "against": base.label,
        "metrics": [asdict(score) for score in chosen],
        "level": LEVEL,
        "resamples": resamples,
        "seed": seed,
        "methods": [{"label": c.label, "run": c.run, **c.setting._asdict()} for c in kept],
        "failures": failures,
        "left_out": [{"label": c.label, "reason": _reason(frame, c)} for c in contenders if c not in kept],
        **counts,
        "tests": tests,
        "cells": [cell for cell, _, _ in cells],
    }


def _read_runs(folders: Sequence[Path]) -> list[_Run]:
    folders = [named_path(folder) for folder in folders]
    if not folders:
        raise UserError("no run is given", remedy="give the folder of a run, or of several")
    places = [folder.resolve() for folder in folders]
    for place in places:
        if places.count(place) > 1:
            raise UserError(f"{place.name} is given twice", remedy="give each run once")
    names = [place.name for place in places]
    labels = [name if names.count(name) == 1 else str(f) for name, f in zip(names, folders, strict=True)]
    return [_read_run(folder, label) for folder, label in zip(folders, labels, strict=True)]


def _read_run(folder: Path, label: str) -> _Run:
    run = Run.open(folder)
    frame = run.scores
    one_of_each(frame)
    whole = frame["blocks"].isin(("", "+".join(run.manifest["blocks"])))
    scores = {score.name: score for score in scores_of(frame)}
    return _Run(label, run.manifest, frame[whole], scores, described=any(score.network for score in scores.values()))


def _refuse_differences(runs: Sequence[_Run], metrics: Sequence[str]) -> None:
    """Raises `UserError` with every respect in which results would not be compared like with like."""
    facts = [_facts(run, metrics) for run in runs]
    found = []
    for respect in dict.fromkeys(respect for of_run in facts for respect in of_run):
        said: dict[str, list[str]] = {}
        for run, of_run in zip(runs, facts, strict=True):
            said.setdefault(of_run.get(respect, "none"), []).append(run.label)
        if len(said) > 1:
            found.append(f"{respect}: " + "; ".join(f"{words} in {', '.join(where)}" for words, where in said.items()))
    if found:
        remedy = "run them alike"
        if all(difference.startswith("metric") for difference in found):
            remedy = "score them alike with `riebench score`, or name metrics that they share"
        raise UserError(f"these runs cannot be compared. {'. '.join(found)}", remedy=remedy)


def _facts(run: _Run, metrics: Sequence[str]) -> dict[str, str]:
    """Returns respect -> what the run says there. Runs that are compared say the same in all."""
    frame, setup = run.frame, run.manifest.get("setup", {})
    grounder = setup.get("grounder", "unknown")
    backbone, steps, mode = one_of_each(frame)
    edits, contents = sorted(frame["edit"].unique()), run.manifest.get("edits", {}).get("sha256", "")
    ids = ids_digest(edits)
    names = [name for name in run.scores if not metrics or name in metrics]
    facts = {
        "backbone": f"{backbone} in {steps} {'step' if steps == 1 else 'steps'}",
        "mode": mode,
        "precision": ", ".join(sorted(frame["dtype"].unique())),
        "seeds": ", ".join(str(s) for s in sorted(frame["seed"].unique())),
        "edits": f"{len(edits)} (ids {ids[:8]}, contents {contents[:8]})",
        "grounder": " ".join(map(str, grounder.values())) if isinstance(grounder, Mapping) else str(grounder),
        "mask rule": str(setup.get("mask_rule", "unknown")),
        "metrics": ", ".join(sorted(names)),
    }
    for name in names:
        score = run.scores[name]
        words = (score.network, f"weights {score.weights_sha256[:12]}" if score.weights_sha256 else "")
        said = ", ".join(filter(None, (*words, score.preprocessing)))
        facts[f"metric {name}"] = said or ("no network" if run.described else "network not recorded")
    return facts


def _contenders(runs: Sequence[_Run]) -> tuple[list[_Contender], pd.DataFrame]:
    """Returns who is compared, and the rows of all of them in one frame, in which `method` is the label."""
    entries = [(run, setting, _rows(run.frame, setting)) for run in runs for setting in settings_of(run.frame)]
    distinct: list[tuple[_Run, Setting, pd.DataFrame]] = []
    for run, setting, rows in entries:
        if not any(setting == other and _same(rows, known, run.scores) for _, other, known in distinct):
            distinct.append((run, setting, rows))
    kinds = [(setting.method, setting.strength) for _, setting, _ in distinct]
    contenders, frames = [], []
    for run, setting, rows in distinct:
        strengths = {strength for method, strength in kinds if method == setting.method}
        label = setting.method if len(strengths) == 1 else f"{setting.method}@{setting.strength:g}"
        if kinds.count((setting.method, setting.strength)) > 1:
            label = f"{label} ({run.label})"
        contenders.append(_Contender(label, run.label, setting))
        frames.append(rows.assign(method=label, strength=0.0, blocks=""))
    return contenders, pd.concat(frames, ignore_index=True)


def _placed(contender: _Contender) -> Setting:
    """Returns where a contender's rows stand in the frame of all."""
    return Setting(contender.label, 0.0, "")


def _rows(frame: pd.DataFrame, setting: Setting) -> pd.DataFrame:
    return frame[(frame[SETTING] == list(setting)).all(axis=1)]


def _same(one: pd.DataFrame, other: pd.DataFrame, scores: Mapping[str, Score]) -> bool:
    """Returns whether two runs have the same results of a setting."""
    names = [*CASE, "status", "reason", *(name for name in scores if name in one and name in other)]
    sorted_rows = [rows[names].sort_values(CASE).reset_index(drop=True) for rows in (one, other)]
    return sorted_rows[0].equals(sorted_rows[1])


def _choose_metrics(run: _Run, metrics: Sequence[str]) -> list[Score]:
    for name in metrics:
        if name not in run.scores:
            raise UserError(
                f"no run has the metric {name!r}{did_you_mean(name, run.scores)}",
                remedy=f"use {', '.join(run.scores)}, or score the runs with it",
            )
    return [run.scores[name] for name in dict.fromkeys(metrics or HEADLINES) if name in run.scores]


def _choose_methods(
    contenders: Sequence[_Contender], methods: Sequence[str], against: str
) -> tuple[list[_Contender], _Contender]:
    """Returns the contenders that are asked for, and the one that they are compared with, which is among them."""
    chosen = []
    for name in methods:
        found = [
            c for c in contenders if name in (c.label, c.setting.method, f"{c.setting.method}@{c.setting.strength:g}")
        ]
        if not found:
            labels = [c.label for c in contenders]
            raise UserError(
                f"there is no method {name!r}{did_you_mean(name, labels)}", remedy=f"use {', '.join(labels)}"
            )
        chosen += found
    asked = [c for c in contenders if c in chosen or not methods]
    base = _find(contenders if against else asked, against)
    asked = [c for c in contenders if c in asked or c == base]
    if len(asked) < 2:
        raise UserError(
            f"there is only one method to compare, {base.label}",
            remedy="name two, or one and --against, or further runs",
        )
    return asked, base


def _find(contenders: Sequence[_Contender], against: str) -> _Contender:
    first = next((c for c in contenders if c.setting.method not in CONTROLS), contenders[0])
    found = [c for c in contenders if against in (c.label, f"{c.setting.method}@{c.setting.strength:g}")]
    of_method = [c for c in contenders if c.setting.method == (against or first.setting.method)]
    if not found and (not against or len({c.run for c in of_method}) == 1):
        of_run = [c for c in of_method if c.run == of_method[0].run]
        return min(of_run, key=lambda c: (abs(c.setting.strength - 1), c.setting.strength))
    if len(found) != 1:
        labels = [c.label for c in contenders]
        count = "are several methods" if found or of_method else "is no method"
        raise UserError(
            f"there {count} {against!r}{did_you_mean(against, labels)}",
            remedy=f"use one of {', '.join(labels)}",
        )
    return found[0]


def _reason(frame: pd.DataFrame, contender: _Contender) -> str:
    return str(frame.loc[frame["method"] == contender.label, "reason"].mode().iloc[0])


def _counts(frame: pd.DataFrame, valid: ValidCases) -> dict:
    """Returns, of all and of each category, cases planned, valid cases, their edits, and how many failed for what
    reason."""
    planned = frame[CASE].drop_duplicates()["category"]
    failures = valid.failures()

    def of_group(cases: pd.MultiIndex, num_planned: int, failed: dict[str, int]) -> dict:
        edits = int(cases.droplevel("seed").nunique())
        return {"planned": num_planned, "cases": len(cases), "edits": edits, "failed": failed}

    categories = valid.cases.get_level_values("category")
    everywhere = {str(reason): int(count) for reason, count in valid.failed["reason"].value_counts().items()}
    return {
        "overall": of_group(valid.cases, len(planned), everywhere),
        "categories": {
            name: of_group(valid.cases[categories == name], int((planned == name).sum()), failures.get(name, {}))
            for name in planned.unique()
        },
    }


#: A cell, the edits that it is of, and the difference of each.
_Measured = tuple[dict, tuple, np.ndarray]


def _cells(
    frame: pd.DataFrame,
    categories: Sequence[str],
    base: _Contender,
    others: Sequence[_Contender],
    scores: Sequence[Score],
) -> list[_Measured]:
    """Returns a cell for each metric, category and method, without a verdict."""
    found = []
    for score, table in score_tables(frame, [score.name for score in scores]).items():
        in_category = table.index.get_level_values("category")
        for category in (ALL, *categories):
            of_category = table if category == ALL else table[in_category == category]
            for other in others:
                pair = of_category[[_placed(other), _placed(base)]]
                both = pair.dropna()
                means = edit_means(both)
                by_edit = means.to_numpy()
                about = {"metric": score, "category": category, "method": other.label, "against": base.label}
                cell = about | _counted(len(pair), len(both), by_edit)
                found.append((cell, tuple(means.index), by_edit[:, 0] - by_edit[:, 1]))
    return found


def _counted(of_all: int, num_cases: int, by_edit: np.ndarray) -> dict:
    """Returns what a cell says before it is tested. num_cases: of `of_all` cases those on which a metric is defined
    under a method and under that compared with; by_edit: the means of each of their edits under both, `[edits, 2]`."""
    means = [float(mean) for mean in by_edit.mean(axis=0)] if len(by_edit) else [None, None]
    return {
        "edits": len(by_edit),
        "cases": num_cases,
        "dropped": of_all - num_cases,
        "mean": means[0],
        "mean_against": means[1],
        "difference": None,
        "p_holm": None,
        "verdict": NOT_MEASURED,
        "edits_needed": None,
    }


def _judge(cells: Sequence[_Measured], scores: Sequence[Score], resamples: int, seed: int) -> int:
    """Gives each cell its interval, its p after Holm, its verdict and the edits that it needs, and returns the number
    of tests: cells of one metric and method on the same edits are one.

    Resamples depend on the seed and on the number of edits alone, so an interval is the same whatever else is compared;
    cells of as many edits are computed together.
    """
    better = {score.name: score.better for score in scores}
    same: dict[tuple, list[tuple[dict, np.ndarray]]] = {}
    for cell, edits, column in cells:
        if len(column):
            same.setdefault((cell["metric"], cell["method"], edits), []).append((cell, column))
    tests = [[cell for cell, _ in alike] for alike in same.values() if len(alike[0][1]) > 1]
    columns = [alike[0][1] for alike in same.values() if len(alike[0][1]) > 1]
    for num_edits in sorted({len(column) for column in columns}):
        places = [i for i, column in enumerate(columns) if len(column) == num_edits]
        differences_ek = np.column_stack([columns[i] for i in places])
        weights_re = bootstrap_weights(num_edits, resamples, np.random.default_rng(seed))
        for i, interval in zip(places, bootstrap_intervals(differences_ek, weights_re), strict=True):
            for cell in tests[i]:
                cell["difference"] = asdict(interval)
    level = LEVEL / max(len(tests), 1)
    p_values = adjusted_p(columns, FLIPS_PER_TEST * len(tests), lambda num_edits: np.random.default_rng(seed))
    for alike, column, p, times in zip(tests, columns, p_values, times_counted(columns), strict=True):
        for cell in alike:
            words = ABOVE if cell["difference"]["mean"] > 0 else BELOW
            cell["p_holm"] = float(p)
            if p <= LEVEL:
                cell["verdict"] = words[better[cell["metric"]]]
            else:
                cell["verdict"] = TOO_FEW_EDITS if len(column) < least_edits(level / times) else NOT_SEPARABLE
                cell["edits_needed"] = _edits_needed(column, level / times)
    for cell, column in (one for alike in same.values() for one in alike if len(one[1]) == 1):
        cell["difference"] = asdict(Interval(float(column[0]), None, None, TOO_FEW_EDITS))
        cell |= {"verdict": ONE_EDIT, "edits_needed": least_edits(level)}
    return len(tests)


def _edits_needed(difference_e: np.ndarray, level: float) -> int | None:
    """Returns how many edits would be needed to tell a difference from zero, if its mean and spread stay as they are.

    level: `LEVEL` over the number of tests, which is what Holm asks of the least p. The number is that of 80 % power
    (`edits_needed`), but no less than those with which the exact sign-flip test can reach the level (`least_edits`),
    and more than there are. None where it is beyond `MOST_EDITS`.
    """
    by_power = edits_needed(float(difference_e.mean()), float(difference_e.std(ddof=1)), level)
    if by_power > MOST_EDITS:
        return None
    return max(len(difference_e) + 1, least_edits(level), math.ceil(by_power))
