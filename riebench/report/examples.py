"""Which pictures stand beside a category's verdict: one case, chosen by a rule that looks at no picture."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from riebench.analysis.planted import planted_of
from riebench.analysis.verdicts import names_block
from riebench.core.scores import NOOP
from riebench.report.strips import pictures_of
from riebench.report.words import GAIN, SUCCESS

ORACLE = "oracle-prompt"
CASE = ["edit", "seed"]


@dataclass(frozen=True)
class Shown:
    """A picture of a case. path: relative to the run directory, "" where there is none."""

    path: str
    block: str = ""
    """The block that alone was intervened on; "" for the case's own two pictures."""
    gain: float | None = None
    """The gain in the headline score."""
    success: bool | None = None
    """Whether the oracle finds the edit in it; None where that is not known."""


@dataclass(frozen=True)
class Example:
    """The case that is shown of a category."""

    edit: str
    seed: int
    pictures: tuple[Shown, ...]
    """Original, edited, the edit in the block alone and, where there is another block, in the next one alone."""


def shown_block(category: str, summary: dict[str, Any]) -> str:
    """Returns the block whose pictures are shown of a category: the planted one where it is known, else the one that
    the headline's verdict names; "" for none."""
    verdict = summary["dominance"][0]["categories"][category]["dominant"].get(GAIN, "")
    named = verdict if verdict and names_block(verdict) else ""
    return planted_of(summary).get(category, named)


def next_block(block: str, summary: dict[str, Any]) -> str:
    """Returns the block behind another in the order of the model, the first behind the last; "" where it is alone."""
    blocks = summary["blocks"]
    after = blocks[(blocks.index(block) + 1) % len(blocks)]
    return "" if after == block else after


def has_ceiling(frame: pd.DataFrame) -> bool:
    """Returns whether a run knows in which cases the edited prompt itself succeeds by the oracle."""
    return SUCCESS in frame and bool(frame.loc[frame["method"] == ORACLE, SUCCESS].notna().any())


def examples_of(summary: dict[str, Any], frame: pd.DataFrame, run_folder: Path) -> dict[str, Example]:
    """Returns category -> the case that is shown of it, with the headline's method; categories without a block or a
    case are left out.

    It is the middle one of the cases in which both blocks' pictures are valid and, where `has_ceiling`, the edited
    prompt itself succeeds: ordered by oracle success, where that is measured, and then by gain, both of the edit in
    the block alone (`shown_block`), and last by edit and seed. Of an even number it is the worse one of the middle two.
    """
    headline, valid = summary["dominance"][0], frame[frame["status"] == "ok"]
    of_method = valid[(valid["method"] == headline["method"]) & (valid["strength"] == headline["strength"])]
    unchanged = valid[valid["method"] == NOOP].set_index(CASE)[GAIN]
    possible = unchanged.index
    if has_ceiling(frame):
        possible = valid[(valid["method"] == ORACLE) & (valid[SUCCESS] == 1)].set_index(CASE).index
    found = {}
    for category in headline["categories"]:
        block = shown_block(category, summary)
        if block not in summary["blocks"]:
            continue
        of_category = of_method[of_method["category"] == category]
        parts = [
            of_category[of_category["blocks"] == one].set_index(CASE).assign(block=one)
            for one in filter(None, (block, next_block(block, summary)))
        ]
        cases = parts[0].index[parts[0].index.isin(possible) & parts[0].index.isin(parts[-1].index)]
        if len(cases):
            edit, seed = _middle(parts[0].loc[cases], unchanged)
            rows = pd.DataFrame([part.loc[(edit, seed)] for part in parts])
            found[category] = Example(str(edit), int(seed), _pictures(rows, unchanged[edit, seed], run_folder))
    return found


def _middle(rows: pd.DataFrame, unchanged: pd.Series) -> tuple[str, int]:
    """Returns the case in the middle. rows: one a case, by `CASE`."""
    success = rows[SUCCESS].fillna(0.0) if SUCCESS in rows else pd.Series(0.0, rows.index)
    keys = zip(success, rows[GAIN] - unchanged.reindex(rows.index), rows.index, strict=True)
    ordered = sorted(keys)
    return ordered[(len(ordered) - 1) // 2][-1]


def _pictures(rows: pd.DataFrame, unchanged: float, run_folder: Path) -> tuple[Shown, ...]:
    """Returns a case's own two pictures, and one of each row."""
    paths = pictures_of(rows, run_folder)
    first = (Shown(paths[name].iloc[0]) for name in ("original", "edited"))
    success = rows[SUCCESS] if SUCCESS in rows else pd.Series(float("nan"), rows.index)
    return (
        *first,
        *(
            Shown(path, block, float(score - unchanged), None if pd.isna(done) else bool(done == 1))
            for path, block, score, done in zip(paths["image"], rows["block"], rows[GAIN], success, strict=True)
        ),
    )
