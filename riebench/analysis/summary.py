"""The summary of a run: block effects by category, and methods on the cases that all of them are valid on."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import pandas as pd

from riebench.analysis.dominance import (
    dominance,
    selected_share,
    subset_gains,
    subset_names,
    subset_settings,
)
from riebench.analysis.frames import (
    CASE,
    NOOP,
    SCORES,
    SETTING,
    Setting,
    one_of_each,
    score_table,
    settings_of,
    validate_scores,
)
from riebench.analysis.statistics import (
    ValidCases,
    bootstrap_intervals,
    bootstrap_weights,
    edit_means,
    holm,
    sign_flip_p,
    valid_cases,
)
from riebench.errors import UserError

#: The values whose block effects are reported; the first is the headline.
VALUES = ("clip_text_edited", "oracle_success", "lpips_original")
TABLE_WIDTH = 110


def summarise(
    frame: pd.DataFrame, blocks: tuple[str, ...], *, method: str = "sae", resamples: int = 10_000, seed: int = 0
) -> dict:
    """Summarises the scores of one run as a JSON-able dict; a number that does not exist is None.

    All tables use the cases on which every setting succeeded. A setting that failed on every case is left out of that
    intersection and listed under `left_out`. `method` is the one whose block subsets give the effects; `dominance`
    names it and the strength (of several the one nearest 1), or is None where not every subset was run; then no
    category has effects. Raises `UserError` where the frame is not of the schema, mixes backbones, has no no-op, or no
    valid case.
    """
    blocks = tuple(blocks)
    frame = validate_scores(frame)
    backbone, steps, mode = one_of_each(frame)
    generator = np.random.default_rng(seed)

    kept = settings_of(frame[frame["status"] == "ok"])
    if not any(setting.method == NOOP for setting in kept):
        raise UserError("the scores have no valid result of method 'noop'", remedy="add it to the run's methods")
    valid = valid_cases(frame, kept)
    if len(valid.cases) == 0:
        raise UserError(f"no case is valid under all settings; {_worst(valid)}", remedy="mend that, then run again")
    counts = pd.MultiIndex.from_frame(frame[CASE]).isin(valid.cases)
    counts &= pd.MultiIndex.from_frame(frame[SETTING]).isin(kept)
    frame_valid = frame[counts]

    strength = _subset_strength(kept, method, blocks)
    whole = None if strength is None else Setting(method, strength, subset_names(blocks)[-1])
    values = [value for value in VALUES if frame_valid[value].notna().any()]
    gains = {
        value: subset_gains(frame_valid, blocks, value, method, strength).dropna()
        for value in (values if strength is not None else ())
    }
    failures = valid.failures()
    planned = frame[CASE].drop_duplicates()["category"]
    categories = {}
    for category in planned.unique():
        cases = valid.cases[valid.cases.get_level_values("category") == category]
        categories[category] = {
            "planned": int((planned == category).sum()),
            "failed": failures.get(category, {}),
            **_effects(frame_valid, cases, gains, blocks, whole, resamples, generator),
        }
    return {
        "backbone": backbone,
        "steps": steps,
        "mode": mode,
        "blocks": list(blocks),
        "resamples": resamples,
        "seed": seed,
        "values": values,
        "dominance": None if strength is None else {"method": method, "strength": strength},
        "planned": len(planned),
        "failed": {str(reason): int(count) for reason, count in valid.failed["reason"].value_counts().items()},
        "overall": _effects(frame_valid, valid.cases, gains, blocks, whole, resamples, generator),
        "categories": categories,
        "methods": _methods(frame_valid, kept, resamples, generator),
        "left_out": [
            {**Setting(*setting)._asdict(), "reason": str(rows["reason"].mode().iloc[0])}
            for setting, rows in frame.groupby(SETTING, sort=False)
            if setting not in kept
        ],
    }


def block_table(summary: dict) -> str:
    """Shapley value of each block for the headline value by category, as plain text of at most 110 columns.

    Intervals are left out where there are too many blocks for that width.
    """
    value, blocks = summary["values"][0], summary["blocks"]
    if summary["dominance"] is None:
        return "Block effects were not measured: they need every subset of the blocks."
    rows = {**summary["categories"], "all": summary["overall"]}

    def lines(with_intervals: bool) -> list[str]:
        cells = [["category", *blocks, "dominant block"]]
        for name, row in rows.items():
            shapley = [row["effects"][value][block]["shapley"] if value in row["effects"] else None for block in blocks]
            cells.append(
                [name, *(_cell(s, with_intervals) for s in shapley), row["dominant"].get(value, "no valid case")]
            )
        widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
        last = len(widths) - 1
        return [
            " ".join(
                cell.ljust(width) if i in (0, last) else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in cells
        ]

    table = lines(with_intervals=True)
    if max(map(len, table)) > TABLE_WIDTH:
        table = lines(with_intervals=False)
    unit = "100 x gain in CLIP cosine with the edited prompt" if value == "clip_text_edited" else f"100 x {value}"
    return "\n".join([f"Shapley value of each block, 95 % interval over edits ({unit})", *table])


def _effects(frame, cases, gains, blocks, whole, resamples, generator) -> dict:
    num_edits = cases.droplevel("seed").nunique()
    effects: dict[str, dict] = {}
    dominant: dict[str, str] = {}
    lead: dict[str, dict | None] = {}
    if gains and num_edits:
        share = selected_share(frame, cases, whole, blocks)
        for value, table in gains.items():
            of_cases = table[table.index.isin(cases)]
            if of_cases.empty:
                continue
            result = dominance(of_cases, blocks, resamples=resamples, generator=generator)
            effects[value] = {block: {"share": share[block], **asdict(e)} for block, e in result.effects.items()}
            dominant[value] = result.verdict
            lead[value] = result.lead and asdict(result.lead)
    return {"edits": int(num_edits), "cases": len(cases), "effects": effects, "dominant": dominant, "lead": lead}


def _methods(frame: pd.DataFrame, settings: list[Setting], resamples: int, generator: np.random.Generator) -> list:
    noop = next(i for i, setting in enumerate(settings) if setting.method == NOOP)
    cases = frame[CASE].drop_duplicates()
    rows = [
        {
            **setting._asdict(),
            "edits": int(cases["edit"].nunique()),
            "cases": len(cases),
            "scores": {score.name: None for score in SCORES},
            "gains": {score.name: None for score in SCORES},
        }
        for setting in settings
    ]
    cells = []
    for score in SCORES:
        table = score_table(frame, score.name)[settings]
        scored = [i for i, setting in enumerate(settings) if table[setting].notna().any()]
        by_edit = edit_means(table.iloc[:, scored].dropna())
        if by_edit.empty:
            continue
        values_ek = by_edit.to_numpy()
        weights_re = bootstrap_weights(len(values_ek), resamples, generator)
        for i, interval in zip(scored, bootstrap_intervals(values_ek, weights_re), strict=True):
            rows[i]["scores"][score.name] = asdict(interval)
        if noop not in scored:
            continue  # where nothing changes there is no direction, and no gain over it
        changed = [i for i in scored if i != noop]
        differences_ek = values_ek[:, [scored.index(i) for i in changed]] - values_ek[:, [scored.index(noop)]]
        p_values = sign_flip_p(differences_ek, resamples, generator)
        for i, interval, p in zip(changed, bootstrap_intervals(differences_ek, weights_re), p_values, strict=True):
            cell = rows[i]["gains"][score.name] = asdict(interval)
            cells.append((cell, p))
    for (cell, _), adjusted in zip(cells, holm(np.array([p for _, p in cells])), strict=True):
        cell["p_holm"] = float(adjusted)
    return rows


def _subset_strength(settings: list[Setting], method: str, blocks: tuple[str, ...]) -> float | None:
    strengths = {setting.strength for setting in settings if setting.method == method}
    complete = [s for s in strengths if set(subset_settings(blocks, method, s)) <= set(settings)]
    return min(complete, key=lambda strength: (abs(strength - 1), strength), default=None)


def _worst(valid: ValidCases) -> str:
    reason, count = next(iter(valid.failed["reason"].value_counts().items()))
    return f"the most common reason, on {count} of {len(valid.failed)} cases, is {str(reason)!r}"


def _cell(shapley: dict | None, with_interval: bool) -> str:
    if shapley is None:
        return "-"
    mean, low, high = (100 * shapley[key] for key in ("mean", "low", "high"))
    return f"{mean:+.1f} [{low:.1f},{high:.1f}]" if with_interval else f"{mean:+.1f}"
