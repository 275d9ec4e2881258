"""Block effects of several runs are put into one table: over backbones, steps, windows of steps and methods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from riebench.analysis.summary import load_summary
from riebench.analysis.verdicts import explanation, names_block, short
from riebench.core.errors import UserError
from riebench.core.text_tables import aligned

EFFECTS = ("solo", "leave_one_out", "shapley")
#: What tells one table of effects from another.
SOURCE = ["run", "backbone", "steps", "method", "strength", "window"]
ALL = "all"


def dominance_over(summaries: Sequence[tuple[str, dict]]) -> pd.DataFrame:
    """Returns the effects of every block in every table of every run, one row for each of a category's values and
    blocks.

    summaries: a run's name and its summary. The row of all categories together has the category "all".
    Columns: run, backbone, steps, method, strength, window, category, edits, value, block, share; solo, leave_one_out
    and shapley, each with `_low` and `_high`, empty where they are withheld, and `_interval` ("95 %", or why there is
    none); verdict; edits_needed; lead, of the first block's Shapley value over the second's, with the same. Where
    efficiency is withheld the verdict says so, and its numbers are empty. A category without a valid case has no rows.
    Raises `UserError` where a summary is none, and where no run measured block effects.
    """
    rows = []
    for run, summary in ((name, load_summary(summary)) for name, summary in summaries):
        for table in summary["dominance"]:
            source = {"run": run, "backbone": summary["backbone"], "steps": summary["steps"]}
            source |= {key: table[key] for key in ("method", "strength", "window")}
            groups = {**{name: table["categories"][name] for name in summary["categories"]}, ALL: table["overall"]}
            rows += [
                source
                | {"category": category, "edits": group["edits"], "value": value, "block": block}
                | _numbers(group["effects"].get(value, {}).get(block, {}))
                | {"verdict": verdict, "edits_needed": group["edits_needed"].get(value)}
                | _interval("lead", group["lead"].get(value))
                for category, group in groups.items()
                for value, verdict in group["dominant"].items()
                for block in summary["blocks"]
            ]
    if not rows:
        raise UserError(
            "none of the runs measured block effects",
            remedy="run a method on the subsets of the blocks (subsets_of)",
        )
    numbers = ["share", *(name + end for name in (*EFFECTS, "lead") for end in _ENDS)]
    return pd.DataFrame(rows).astype(dict.fromkeys(numbers, float) | {"edits_needed": "Int64"})


def verdict_table(effects: pd.DataFrame, value: str = "clip_text_edited") -> str:
    """Returns the verdicts on one value as plain text: a row a category, a column for each backbone, method and window.

    effects: of `dominance_over`. A cell is the block that dominates with its Shapley value, or why none does, which is
    explained below the table; "-" where the category has no valid case. Strength, steps and run are named where columns
    are not told apart without. Raises `UserError` where no run has the value.
    """
    of_value = effects[effects["value"] == value]
    if of_value.empty:
        known = ", ".join(effects["value"].unique())
        raise UserError(f"no run measured block effects on {value!r}", remedy=f"ask for one of {known}")
    sources = of_value[SOURCE].drop_duplicates()
    shown = ["backbone", "method"]
    for key in ("window", "strength", "steps", "run"):
        if sources[key].nunique() > 1 and (key == "window" or sources.duplicated(shown).any()):
            shown.append(key)
    heads = [" ".join(_word(key, row[key]) for key in shown) for _, row in sources.iterrows()]
    cells = [["category", *heads]]
    columns = [dict(tuple(part.groupby("category", sort=False))) for _, part in of_value.groupby(SOURCE, sort=False)]
    categories = [name for name in of_value["category"].unique() if name != ALL]
    for category in [*categories, ALL]:
        cells.append([category, *(_cell(column.get(category)) for column in columns)])
    return "\n".join(
        [f"Dominant block by {value}, with its Shapley value", *aligned(cells), *_explanation(heads, columns)]
    )


_ENDS = {"": "mean", "_low": "low", "_high": "high"}


def _numbers(effects: Mapping[str, Any]) -> dict[str, Any]:
    """Returns share and effects of a block, None where they are not known, with the words for each interval."""
    found: dict[str, Any] = {"share": effects.get("share")}
    for name in EFFECTS:
        found |= _interval(name, effects.get(name))
    return found


def _interval(name: str, found: Mapping[str, Any] | None) -> dict[str, Any]:
    """Returns a number with the ends of its interval, None where they are not known, and the interval in words."""
    ends = {name + end: found[key] if found else None for end, key in _ENDS.items()}
    return ends | {f"{name}_interval": (found.get("withheld") or "95 %") if found else ""}


def _explanation(heads: Sequence[str], columns: Sequence[Mapping[str, pd.DataFrame]]) -> list[str]:
    """Returns the lines that say what to do where no block is named."""
    verdicts: dict[str, dict[str, tuple[str, int | None]]] = {head: {} for head in heads}
    for head, column in zip(heads, columns, strict=True):
        for category, of_blocks in column.items():
            verdict, needed = of_blocks[["verdict", "edits_needed"]].iloc[0]
            verdicts[head][category] = (verdict, None if pd.isna(needed) else int(needed))
    return explanation(verdicts)


def _word(key: str, cell: object) -> str:
    return {"strength": f"x{cell}", "steps": f"{cell} steps", "window": f"[{cell}]", "run": f"({cell})"}.get(
        key, str(cell)
    )


def _cell(of_blocks: pd.DataFrame | None) -> str:
    if of_blocks is None:
        return "-"
    verdict = of_blocks["verdict"].iloc[0]
    if not names_block(verdict):
        return short(verdict)
    return f"{verdict} {of_blocks.set_index('block').loc[verdict, 'shapley']:+.3f}"
