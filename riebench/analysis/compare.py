"""Methods of one run or several are compared with one of them on the same cases: better, worse or not separable."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from riebench.analysis.failures import failure_sentences, failures_of
from riebench.analysis.frames import one_of_each, score_tables, settings_of
from riebench.analysis.run import Run
from riebench.analysis.statistics import (
    ValidCases,
    bootstrap_intervals,
    bootstrap_weights,
    edit_means,
    holm,
    sign_flip_p,
    valid_cases,
)
from riebench.core.errors import UserError, did_you_mean
from riebench.core.files import write_json, write_text
from riebench.core.scores import CASE, NOOP, SETTING, Score, Setting, ids_digest, scores_of
from riebench.core.text_tables import markdown

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
NOT_SEPARABLE, ONE_EDIT, NOT_MEASURED = "not separable", "one edit", "not measured"
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
    against: str = "",
    metrics: Sequence[str] = (),
    resamples: int = 10_000,
    seed: int = 0,
) -> dict:
    """Compares every method on all blocks with one of them, per category and over all, as a JSON-able dict.

    against: the label of a method in the table, or as `sae@2`; a name alone is that method at the strength nearest 1;
    by default the first method of the first run that is no control. metrics: by default `HEADLINES`. A method that two
    runs have with other results is labelled with its run.
    All is measured on the cases on which every method succeeded; a case on which a metric is undefined for one of a
    pair is dropped from that pair (`dropped`). `cells` has the mean difference over edits, with the seeds of an edit
    averaged, its 95 % interval, and the sign-flip p after Holm over all cells; a verdict other than "not separable" has
    p of at most `LEVEL`. Raises `UserError` for a run that is not finished, runs that are not of the same edits, seeds,
    backbone, mode, precision, regions and metrics (where metrics are asked for: of those), naming all differences, for
    an unknown method or metric, and where no case is valid.
    """
    runs = _read_runs(folders)
    _refuse_differences(runs, metrics)
    contenders, frame = _contenders(runs)
    chosen = _choose_metrics(runs[0], metrics)
    base = _find(contenders, against)

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
    failures = [{key: value for key, value in one.items() if key != "strength"} for one in failures_of(frame)]
    return {
        "runs": [run.label for run in runs],
        "backbone": backbone,
        "steps": steps,
        "mode": mode,
        "dtype": str(frame["dtype"].iloc[0]),
        "seeds": sorted(int(s) for s in frame["seed"].unique()),
        "edits": int(frame["edit"].nunique()),
        "against": base.label,
        "metrics": [asdict(score) for score in chosen],
        "level": LEVEL,
        "resamples": resamples,
        "seed": seed,
        "methods": [{"label": c.label, "run": c.run, **c.setting._asdict()} for c in kept],
        "failures": failures,
        "left_out": [{"label": c.label, "reason": _reason(frame, c)} for c in contenders if c not in kept],
        **counts,
        "cells": _cells(frame_valid, list(counts["categories"]), base, others, chosen, resamples, seed),
    }


def compare_table(found: dict) -> str:
    """Returns what `compare_runs` found, as markdown whose columns also line up in a terminal."""
    metrics = {score["name"]: score for score in found["metrics"]}
    cells = {(cell["category"], cell["method"], cell["metric"]): cell for cell in found["cells"]}
    others = list(dict.fromkeys(cell["method"] for cell in found["cells"]))
    shown = [name for name in metrics if any(cell["metric"] == name for cell in found["cells"])]
    labels = {name: metrics[name]["label"] for name in shown}
    titles = {name: f"{labels[name]} ({_direction(metrics[name]['better'])})" for name in shown}
    overall = found["overall"]
    parts = [
        f"## {', '.join(found['runs'])}: every method against `{found['against']}`",
        f"`{found['backbone']}`, mode {found['mode']}, seeds {', '.join(map(str, found['seeds']))}. "
        f"{overall['cases']} of {overall['planned']} cases valid under all methods, on {overall['edits']} edits.",
        f"A difference is the method's mean over edits less that of `{found['against']}` on the same cases. It is "
        f"separable where its sign-flip p, after Holm over all cells of the comparison, is at most {found['level']:g}.",
    ]
    for row in found["left_out"]:
        parts.append(f"Left out: `{row['label']}` failed on every case ({row['reason']}).")
    gone = [row["label"] for row in found["left_out"]]
    partly = [failure for failure in found["failures"] if failure["method"] not in gone]
    parts += [f"{sentence}." for sentence in failure_sentences(partly, len(found["methods"]))]
    head = ("metric", "method", "mean", "difference", "95 % interval", "p (Holm)", "verdict")
    lines = [[titles[name], method, *_long_cells(cells[ALL, method, name])] for name in shown for method in others]
    parts += ["### All categories", markdown([head, *lines], right=(2, 3, 5))]
    num_tests = sum(cell["p_holm"] is not None for cell in found["cells"])
    for category, row in found["categories"].items():
        failed = ", ".join(f"{count} {reason}" for reason, count in row["failed"].items())
        least_p = 2.0 ** (1 - row["edits"])
        blind = row["edits"] > 1 and least_p * num_tests > found["level"]
        few = f" With so few edits, no p is below {least_p:.2g} before Holm." if blind else ""
        parts += [
            f"### {category}",
            f"{row['cases']} of {row['planned']} cases, {row['edits']} {'edit' if row['edits'] == 1 else 'edits'}"
            f"{f'; not counted: {failed}' if failed else ''}.{few}",
            markdown(
                [
                    ("method", *labels.values()),
                    *((method, *(_short_cell(cells[category, method, name]) for name in shown)) for method in others),
                ]
            ),
        ]
    return "\n\n".join(parts) + "\n"


def write_compare(found: dict, folder: Path) -> list[Path]:
    """Writes `compare.json`, `compare.csv` (a row a cell) and `compare.md` into a folder, and returns their paths."""
    folder = Path(folder)
    rows = []
    for cell in found["cells"]:
        difference = cell["difference"] or {"mean": None, "low": None, "high": None}
        flat = {key: value for key, value in cell.items() if key not in ("difference", "p_holm", "verdict")}
        rows.append(
            flat
            | {"difference": difference["mean"], "low": difference["low"], "high": difference["high"]}
            | {"p_holm": cell["p_holm"], "verdict": cell["verdict"]}
        )
    write_json(folder / "compare.json", found)
    write_text(folder / "compare.csv", pd.DataFrame(rows).to_csv(index=False, lineterminator="\n"))
    write_text(folder / "compare.md", compare_table(found))
    return [folder / f"compare.{kind}" for kind in ("json", "csv", "md")]


def _read_runs(folders: Sequence[Path]) -> list[_Run]:
    folders = [Path(folder) for folder in folders]
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
    return [run.scores[name] for name in metrics or HEADLINES if name in run.scores]


def _find(contenders: Sequence[_Contender], against: str) -> _Contender:
    if len(contenders) < 2:
        raise UserError("there is only one method to compare", remedy="give a run with several, or several runs")
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


def _cells(
    frame: pd.DataFrame,
    categories: Sequence[str],
    base: _Contender,
    others: Sequence[_Contender],
    scores: Sequence[Score],
    resamples: int,
    seed: int,
) -> list[dict]:
    """Returns a cell for each metric, category and method, with its verdict."""
    found: list[tuple[dict, np.ndarray]] = []
    for score, table in score_tables(frame, [score.name for score in scores]).items():
        in_category = table.index.get_level_values("category")
        for category in (ALL, *categories):
            of_category = table if category == ALL else table[in_category == category]
            for other in others:
                pair = of_category[[_placed(other), _placed(base)]]
                both = pair.dropna()
                by_edit = edit_means(both).to_numpy()
                about = {"metric": score, "category": category, "method": other.label, "against": base.label}
                found.append((about | _counted(len(pair), len(both), by_edit), by_edit[:, 0] - by_edit[:, 1]))
    _judge([(cell, column) for cell, column in found if len(column) > 1], scores, resamples, seed)
    for cell, column in found:
        if len(column) == 1:
            cell["difference"] = {"mean": float(column[0]), "low": None, "high": None}
            cell["verdict"] = ONE_EDIT
    return [cell for cell, _ in found]


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
    }


def _judge(cells: Sequence[tuple[dict, np.ndarray]], scores: Sequence[Score], resamples: int, seed: int) -> None:
    """Gives each cell its interval, its p after Holm over all of them, and its verdict, from its differences by edit.

    Resamples depend on the seed and on the number of edits alone, so an interval is the same whatever else is compared;
    cells of as many edits are computed together.
    """
    better = {score.name: score.better for score in scores}
    tested = []
    for num_edits in sorted({len(column) for _, column in cells}):
        group = [(cell, column) for cell, column in cells if len(column) == num_edits]
        differences_ek = np.column_stack([column for _, column in group])
        weights_re = bootstrap_weights(num_edits, resamples, np.random.default_rng(seed))
        p_values = sign_flip_p(differences_ek, FLIPS_PER_TEST * len(cells), np.random.default_rng(seed))
        intervals = bootstrap_intervals(differences_ek, weights_re)
        for (cell, _), interval, p in zip(group, intervals, p_values, strict=True):
            cell["difference"] = asdict(interval)
            tested.append((cell, p))
    for (cell, _), p in zip(tested, holm(np.array([p for _, p in tested])), strict=True):
        words = ABOVE if cell["difference"]["mean"] > 0 else BELOW
        cell["p_holm"] = float(p)
        cell["verdict"] = words[better[cell["metric"]]] if p <= LEVEL else NOT_SEPARABLE


def _direction(better: str) -> str:
    return "no direction" if better == "neither" else f"{better} is better"


def _long_cells(cell: dict) -> list[str]:
    difference = cell["difference"]
    if difference is None:
        return ["-", "-", "-", "-", cell["verdict"]]
    mean, low, high = difference["mean"], difference["low"], difference["high"]
    dropped = f"; undefined on {cell['dropped']} cases" if cell["dropped"] else ""
    return [
        f"{cell['mean']:.4f}",
        f"{mean:+.4f}",
        "-" if low is None else f"[{low:+.4f}, {high:+.4f}]",
        "-" if cell["p_holm"] is None else f"{cell['p_holm']:.4f}",
        cell["verdict"] + dropped,
    ]


def _short_cell(cell: dict) -> str:
    if cell["difference"] is None:
        return cell["verdict"]
    dropped = f" ({cell['dropped']} undefined)" if cell["dropped"] else ""
    return f"{cell['difference']['mean']:+.4f} {cell['verdict']}{dropped}"
