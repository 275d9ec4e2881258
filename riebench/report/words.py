"""How the sections of a report speak of settings, categories, scores and counts."""

from __future__ import annotations

from collections.abc import Mapping

from riebench.analysis.statistics import Interval
from riebench.core.scores import NOOP
from riebench.report.markup import Cell, interval, number

GAIN, COST = "clip_text_edited", "lpips_original"
"""The scores whose gain over the original image, and whose value, are the two axes of the trade-off."""
SUCCESS = "oracle_success"
"""The score that says whether an edit was done, where the truth is known."""

OVERALL = "all categories"
DIRECTIONS = {"higher": "higher is better", "lower": "lower is better", "neither": "no direction"}
VALUES = {
    "clip_text_edited": "edit gain (CLIP cosine with the edited prompt)",
    "oracle_success": "oracle success",
    "lpips_original": "preservation cost (LPIPS to the original)",
    "efficiency": "edit efficiency (edit gain per preservation cost)",
}


def words(name: str) -> str:
    """Returns a name without its underscores."""
    return name.replace("_", " ")


def count_of(count: int, one: str, many: str = "") -> str:
    """Returns a number and what it counts. many: the plural, where it is not `one` with an s."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def label_of(setting: Mapping, summary: dict) -> str:
    """Returns how a setting is called in tables: the strength is named where the method has several or one that is not
    1, the blocks where they are not all."""
    strengths = {other["strength"] for other in summary["methods"] if other["method"] == setting["method"]}
    named = len(strengths) > 1 or (setting["strength"] != 1 and setting["method"] != NOOP)
    strength = f" ×{setting['strength']:g}" if named else ""
    subset = f" on {setting['blocks']}" if setting["blocks"] not in ("", "+".join(summary["blocks"])) else ""
    return f"{setting['method']}{strength}{subset}"


def interval_of(cell: Mapping | None) -> Interval | None:
    """Returns the interval in a summary's cell; None where there is none."""
    return None if cell is None else Interval(cell["mean"], cell["low"], cell["high"], cell.get("withheld", ""))


def interval_cell(cell: Mapping | None, signed: bool = False) -> Cell:
    """Returns mean and interval, which sort by the mean; why an interval is withheld stands in its place."""
    if cell is None:
        return Cell("–", None)
    found = interval_of(cell)
    return Cell(interval(found, signed), found.mean, found.low, found.high, found.withheld)


def number_cell(value: float | None) -> Cell:
    """Returns a number of three decimals."""
    return Cell(number(value), value)


def count_cell(count: int) -> Cell:
    """Returns a whole number."""
    return Cell(f"{count:,}", count)


def share_cell(share: float | None) -> Cell:
    """Returns a share as per cent."""
    return Cell("–" if share is None else f"{share:.0%}", share)
