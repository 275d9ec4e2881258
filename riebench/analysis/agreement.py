"""This measures how well each metric ranks the results of a run as tinyworld's oracle does: whether it tells the truth.

There are two statistics, both of ranks alone, so that no metric needs a threshold: Spearman's rank correlation with
what the oracle read, and the AUROC, the probability that a result which has what the oracle looks for scores above one
that has not, ties counting half. Intervals come from resampling edits, with all results of an edit.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from riebench.analysis.frames import one_of_each, validate_scores
from riebench.analysis.run import Run
from riebench.analysis.statistics import bootstrap_weights
from riebench.core.errors import UserError
from riebench.core.scores import CASE, NOOP
from riebench.core.text_tables import markdown

RESAMPLES, LEVEL = 1000, 0.95
RESAMPLES_AT_ONCE = 16  # so many rows of weights stay in the processor's cache
ORACLE_PROMPT = "oracle-prompt"


@dataclass(frozen=True)
class Measure:
    """A score under test. As `label` writes it, the higher it is the more it says of what it is meant to tell."""

    name: str
    label: str
    meant_for: str
    """The truth that it is meant to tell."""
    negated: bool = False
    """Whether the score is a distance, so that its negative is ranked."""


@dataclass(frozen=True)
class Truth:
    """A reading of a result by the oracle, in [0, 1]; a result has it where it is 1: the AUROC's positive class."""

    name: str
    label: str
    having: str
    """What is said of a result that has it."""
    none: str
    """What is said where no result has it."""
    every: str


MEASURES = (
    Measure("clip_gain", "CLIP gain", "oracle_success"),
    Measure("clip_directional", "directional CLIP", "oracle_success"),
    Measure("lpips_original", "-LPIPS", "oracle_preservation", negated=True),
    Measure("lpips_outside", "-LPIPS outside", "oracle_preservation", negated=True),
)
TRUTHS = (
    Truth("oracle_success", "edit success", "succeeded", "none succeeded", "all succeeded"),
    Truth("oracle_preservation", "preservation", "kept the rest", "none kept the rest", "all kept the rest"),
)
#: Name of a set of results -> the methods that are not in it. `noop` is in none: every gain and distance is measured
#: from it. `oracle-prompt` generates the edited prompt, which is no intervention, and can hold most of the successes.
RESULT_SETS = {"all results": (NOOP,), "interventions": (NOOP, ORACLE_PROMPT)}

_STATISTICS = {
    "auroc": "AUROC, P(a result that {having} scores above one that did not)",
    "spearman": "Spearman rank correlation with {label}",
}
_EXPLANATION = (
    "A result succeeded where the oracle reads every edited attribute as wanted; its preservation is the share of the "
    "other attributes that read as in the original image, and it kept the rest where that is all of them. CLIP gain is "
    "the cosine of image and edited prompt less that of the original image; directional CLIP is the cosine of the "
    "image's change with the prompt's. LPIPS (to the original image: whole, and outside the region) is negated, so "
    "that higher is better in every column. `*` marks the metrics that are meant to tell what the table is about. "
    "Chance is an AUROC of 0.5 and a correlation of 0.",
    "The last row pools the categories, so it also counts how a metric ranks the results of one category against those "
    "of another. A result on which a metric is not defined is left out of that metric's column. Words in place of a "
    "number say why it is undefined; a number without an interval rests on a single edit, or on so few that more than "
    "one resample in twenty leaves it undefined.",
)


@dataclass(frozen=True)
class Estimate:
    """A statistic with the ends of its interval; None where it, or its interval, is not defined."""

    value: float | None
    low: float | None
    high: float | None
    undefined: str
    """Why there is no value, "" where there is."""


def agreement_of_run(folder: Path, *, resamples: int = RESAMPLES, seed: int = 0) -> dict:
    """Returns `measure_agreement` of a run's folder, with the folder's name under `run`.

    Raises `UserError` for a folder without a finished run, besides what `measure_agreement` refuses.
    """
    run = Run.open(folder)
    return {"run": run.name, **measure_agreement(run.scores, resamples=resamples, seed=seed)}


def measure_agreement(frame: pd.DataFrame, *, resamples: int = RESAMPLES, seed: int = 0) -> dict:
    """Returns how each of `MEASURES` ranks the results against each of `TRUTHS`, as a JSON-able dict.

    `sets` has, for each of `RESULT_SETS`, all its results (`overall`) and those of each category: how many they are,
    the share that has each truth, and under `agreement` -> measure -> truth the two estimates, with the number of
    results and edits on which both are defined. Raises `UserError` where the frame is not of the schema, mixes
    backbones, has no valid no-op or nothing else, or was not read by an oracle.
    """
    frame = validate_scores(frame)
    needed = [*(m.name for m in MEASURES if m.name != "clip_gain"), *(truth.name for truth in TRUTHS)]
    missing = [name for name in needed if name not in frame.columns]
    if missing:
        raise UserError(f"the scores: columns missing: {', '.join(missing)}", remedy="score the run again with them")
    backbone, steps, mode = one_of_each(frame)
    results, categories = _results(frame), frame["category"].unique()
    return {
        "backbone": backbone,
        "steps": steps,
        "mode": mode,
        "level": LEVEL,
        "resamples": resamples,
        "seed": seed,
        "measures": {measure.name: asdict(measure) for measure in MEASURES},
        "sets": {
            name: _of_set(results[~results["method"].isin(left_out)], left_out, list(categories), resamples, seed)
            for name, left_out in RESULT_SETS.items()
        },
    }


AGREEMENT_HEAD = "## Agreement of the metrics with the oracle"


def agreement_tables(found: dict) -> str:
    """Returns what `agreement_of_run` found, as markdown whose columns also line up in a terminal."""
    percent = f"{100 * found['level']:g} %"
    parts = [
        f"{AGREEMENT_HEAD}: `{found['run']}`",
        f"`{found['backbone']}`, mode {found['mode']}. {percent} intervals from {found['resamples']:,} resamples of "
        f"edits, each with all its results (seed {found['seed']}).",
        *_EXPLANATION,
    ]
    for name, of_set in found["sets"].items():
        overall = of_set["overall"]
        left_out = " and ".join(f"`{method}`" for method in of_set["left_out"])
        parts.append(f"### {name.capitalize()}")
        parts.append(f"{overall['results']:,} results of {overall['edits']:,} edits, without {left_out}.")
        for truth in TRUTHS:
            for statistic, title in _STATISTICS.items():
                parts.append(f"{truth.label.capitalize()}: {title.format(having=truth.having, label=truth.label)}")
                parts.append(_table(of_set, truth, statistic))
    return "\n\n".join(parts)


def rank_agreement(
    score_n: np.ndarray, truth_n: np.ndarray, edit_n: np.ndarray, counts_re: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns Spearman's rank correlation and the AUROC of every resample of edits: two float arrays `[resamples]`.

    `score_n` and `truth_n` are `[results]`, without NaN; positives are the results whose truth is 1. `edit_n` is the
    column of each result's edit in the integers `counts_re` `[resamples, edits]`, which say how often an edit was
    drawn. The values are exactly those of the sample in which every result stands as often as its edit was drawn: ranks
    are mid-ranks in that sample. NaN where a statistic is undefined.

    With ranks doubled and centred, r = (results below) + (results below or tied), all sums over the N results are whole
    numbers: the mean of r is N, its sum of squares about the mean (N^3 - sum of t^3 over groups of t tied results) / 3,
    and the sum of r over P positives P^2 + 2 U, where AUROC = U / (P (N - P)). They are exact up to a million results.
    Mann and Whitney, "On a Test of Whether one of Two Random Variables is Stochastically Larger than the Other", 1947;
    ties as in Kendall, "Rank Correlation Methods", 1948.
    """
    order = np.argsort(score_n)
    score_n, truth_n, edit_n = score_n[order], truth_n[order], edit_n[order]
    first_n, end_n = (np.searchsorted(score_n, score_n, side) for side in ("left", "right"))  # of those tied with it
    levels, level_n = np.unique(truth_n, return_inverse=True)
    of_level_nl = np.eye(len(levels))[level_n]

    spearman_r, auroc_r = np.full((2, len(counts_re)), np.nan)
    for start in range(0, len(counts_re), RESAMPLES_AT_ONCE):
        at = slice(start, start + RESAMPLES_AT_ONCE)
        count_rn: np.ndarray = counts_re[at].take(edit_n, axis=1)
        before_rn = np.pad(count_rn.cumsum(axis=1), ((0, 0), (1, 0)))
        below_rn, through_rn = before_rn.take(first_n, axis=1), before_rn.take(end_n, axis=1)
        rank_sum_rl = ((count_rn * (below_rn + through_rn)) @ of_level_nl).astype(np.int64)
        level_rl = (count_rn @ of_level_nl).astype(np.int64)
        level_end_rl = level_rl.cumsum(axis=1)
        total = level_end_rl[:, -1]

        covariance = ((2 * level_end_rl - level_rl) * rank_sum_rl).sum(axis=1) - total**3
        score_spread = total**3 - np.einsum("rn,rn->r", count_rn, (through_rn - below_rn) ** 2)
        truth_spread = total**3 - (level_rl**3).sum(axis=1)
        spearman_r[at] = _ratio(3 * covariance, np.sqrt(score_spread) * np.sqrt(truth_spread))

        positives = level_rl[:, levels == 1].sum(axis=1)
        twice_u = rank_sum_rl[:, levels == 1].sum(axis=1) - positives**2
        auroc_r[at] = _ratio(twice_u, 2 * positives * (total - positives))
    return spearman_r, auroc_r


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Returns the ratios, NaN where the denominator is zero."""
    return np.divide(numerator, denominator, out=np.full(len(numerator), np.nan), where=denominator > 0)


def _results(frame: pd.DataFrame) -> pd.DataFrame:
    """Returns every valid result but the no-op's: category, edit, method, and a column for each measure and truth."""
    valid = frame[frame["status"] == "ok"]
    noop = valid[valid["method"] == NOOP].groupby(CASE)["clip_text_edited"].mean()
    if noop.empty:
        raise UserError("the scores have no valid result of method 'noop'", remedy="add it to the run's methods")
    results = valid[valid["method"] != NOOP].join(noop.rename("clip_noop"), on=CASE)
    if results.empty:
        raise UserError("the run has no valid result besides 'noop'", remedy="add methods to the run")
    for truth in TRUTHS:
        if results[truth.name].isna().all():
            raise UserError(
                f"no result has {truth.name}: the run's pictures were not read by an oracle",
                remedy="run a backbone of tinyworld",
            )
    results = results.assign(clip_gain=results["clip_text_edited"] - results["clip_noop"])
    ranked = {m.name: -results[m.name] if m.negated else results[m.name] for m in MEASURES}
    return results[["category", "edit", "method", *(truth.name for truth in TRUTHS)]].assign(**ranked)


def _of_set(results: pd.DataFrame, left_out: tuple[str, ...], categories: list[str], resamples: int, seed: int) -> dict:
    generator = np.random.default_rng(seed)
    return {
        "left_out": list(left_out),
        "overall": _of_group(results, resamples, generator),
        "categories": {
            category: _of_group(results[results["category"] == category], resamples, generator)
            for category in categories
        },
    }


def _of_group(results: pd.DataFrame, resamples: int, generator: np.random.Generator) -> dict:
    """Returns the agreement over some results. All measures share the resamples, so they can be compared."""
    edit_n, edits = pd.factorize(results["edit"])
    counts_re = _draws(len(edits), resamples, generator)
    return {
        "results": len(results),
        "edits": len(edits),
        "shares": {truth.name: _share(results[truth.name].dropna()) for truth in TRUTHS},
        "agreement": {
            measure.name: {
                truth.name: _of_pair(results[measure.name], results[truth.name], truth, edit_n, counts_re)
                for truth in TRUTHS
            }
            for measure in MEASURES
        },
    }


def _draws(num_edits: int, resamples: int, generator: np.random.Generator) -> np.ndarray:
    """Returns how often each resample draws each edit: int64 `[resamples, num_edits]`."""
    if num_edits == 0:
        return np.empty((resamples, 0), dtype=np.int64)
    return np.rint(bootstrap_weights(num_edits, resamples, generator) * num_edits).astype(np.int64)


def _share(truths: pd.Series) -> float | None:
    return float((truths == 1).mean()) if len(truths) else None


def _of_pair(scores: pd.Series, truths: pd.Series, truth: Truth, edit_n: np.ndarray, counts_re: np.ndarray) -> dict:
    both = (scores.notna() & truths.notna()).to_numpy()
    score_n, truth_n, edit_n = scores.to_numpy()[both], truths.to_numpy()[both], edit_n[both]
    found: dict = {"results": len(score_n), "edits": len(np.unique(edit_n))}
    if len(score_n) == 0:
        missing = Estimate(None, None, None, "no result has it")
        return found | {statistic: asdict(missing) for statistic in _STATISTICS}
    once = np.ones((1, counts_re.shape[1]), dtype=np.int64)
    values = rank_agreement(score_n, truth_n, edit_n, once)
    resampled = rank_agreement(score_n, truth_n, edit_n, counts_re)
    one_class = truth.every if (truth_n == 1).all() else truth.none
    reasons = {"spearman": "constant score" if len(np.unique(truth_n)) > 1 else one_class, "auroc": one_class}
    for (statistic, undefined), (value,), of_resamples in zip(reasons.items(), values, resampled, strict=True):
        found[statistic] = asdict(_estimate(float(value), of_resamples, found["edits"], undefined))
    return found


def _estimate(value: float, resampled: np.ndarray, edits: int, undefined: str) -> Estimate:
    """Returns the value with its percentile interval. There is none of a single edit, nor where too many resamples
    leave the value undefined: those that do not would then hold less than `LEVEL` of all."""
    if np.isnan(value):
        return Estimate(None, None, None, undefined)
    defined = resampled[~np.isnan(resampled)]
    if edits < 2 or len(defined) < LEVEL * len(resampled):
        return Estimate(value, None, None, "")
    low, high = np.quantile(defined, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(value, float(low), float(high), "")


def _table(of_set: dict, truth: Truth, statistic: str) -> str:
    marks = {measure: " *" if measure.meant_for == truth.name else "" for measure in MEASURES}
    head = ["category", "results", truth.having, *(f"{measure.label}{mark}" for measure, mark in marks.items())]
    rows = [head] + [
        [
            name,
            f"{row['results']:,}",
            "-" if row["shares"][truth.name] is None else f"{row['shares'][truth.name]:.1%}",
            *(_cell(row["agreement"][measure.name][truth.name][statistic]) for measure in MEASURES),
        ]
        for name, row in {**of_set["categories"], "all": of_set["overall"]}.items()
    ]
    return markdown(rows, right=range(1, len(head)))


def _cell(estimate: dict) -> str:
    if estimate["value"] is None:
        return estimate["undefined"]
    if estimate["low"] is None:
        return f"{estimate['value']:z.2f}"
    return f"{estimate['value']:z.2f} [{estimate['low']:z.2f}, {estimate['high']:z.2f}]"
