"""The section of the trade-off: methods as points, and as curves where they were run at several strengths."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict

from markupsafe import Markup

from riebench.analysis.statistics import Interval
from riebench.report.figures import Curve, Point, trade_off
from riebench.report.markup import Cell, choice, details, figure, number, table
from riebench.report.methods import split
from riebench.report.words import COST, GAIN, OVERALL, interval_cell, interval_of, label_of, words

LINES = "Lines join the strengths of one method, from the original image on."
NO_LINES = (
    "There are no lines, for no method was run at several strengths; a run whose file says “strength: [0.5, 1, 2]” has "
    "them, and says what each method gains at the same cost."
)
NOTHING = Interval(0.0, 0.0, 0.0)


def trade_off_section(summary: dict) -> Markup:
    """Returns the plot of all methods over all categories and in each, with its numbers and curves."""
    frontier = summary["frontier"]
    panels = {OVERALL: (summary["methods"], frontier["overall"])} | {
        words(category): (rows, frontier["categories"].get(category, {}))
        for category, rows in summary["methods_by_category"].items()
    }
    return choice("Category", {name: _panel(name, *found, summary) for name, found in panels.items()})


def _panel(name: str, rows: list[dict], curves: Mapping[str, dict], summary: dict) -> Markup:
    styles = {method: i for i, method in enumerate(dict.fromkeys(r["method"] for r in summary["methods"]))}
    whole, subsets = split(rows, summary["blocks"])
    placed = [_point(row, summary, styles, small=row in subsets) for row in [*whole, *subsets]]
    points = [point for point in placed if point]
    file_name = f"trade-off-{name.replace(' ', '-')}"
    numbers = table(
        f"The points of the figure, {name}",
        ("method", "preservation cost", "edit gain"),
        [(point.label, _cell(point.x), _cell(point.y, signed=True)) for point in points],
        sortable=True,
    )
    lines = [
        Curve(styles[method], ((0.0, 0.0), *((p["cost"]["mean"], p["gain"]["mean"]) for p in curve["points"])))
        for method, curve in curves.items()
    ]
    axes = "preservation cost: LPIPS to the original (left keeps more)", "edit gain: CLIP cosine (up edits more)"
    title = f"Edit gain against preservation cost of each method, {name}"
    picture = figure(
        Markup().join(trade_off(title, *axes, points, lines, narrow=narrow) for narrow in (False, True)),
        f"Up and to the left is better. Bars are 95 % intervals over edits. {LINES if curves else NO_LINES} "
        "Small points are methods on subsets of the blocks.",
        details("Numbers", numbers),
        file_name=file_name,
    )
    return picture + (_curves(name, curves, file_name) if curves else Markup())


def _point(row: dict, summary: dict, styles: Mapping[str, int], *, small: bool) -> Point | None:
    cost = interval_of(row["scores"].get(COST))
    if cost is None:
        return None
    return Point(
        label=label_of(row, summary),
        x=cost,
        y=interval_of(row["gains"].get(GAIN)) or NOTHING,
        style=styles[row["method"]],
        small=small,
        labelled=not small,
    )


def _curves(name: str, curves: Mapping[str, dict], file_name: str) -> Markup:
    costs = sorted({at["cost"] for curve in curves.values() for at in curve["at_cost"]})
    matched = table(
        f"Edit gain at matched preservation, {name}: interpolated between strengths, with 95 % intervals",
        ("preservation cost", *curves),
        [[Cell(number(cost), cost), *(_gain_at(curve, cost) for curve in curves.values())] for cost in costs],
        sortable=True,
        file_name=f"{file_name}-matched",
    )
    whole = table(
        f"Whole curves, {name}: normalised area under the curve, and dominated hypervolume",
        ("method", "area", "hypervolume"),
        [
            (method, interval_cell(curve["area"]), interval_cell(curve["hypervolume"]))
            for method, curve in curves.items()
        ],
        sortable=True,
        file_name=f"{file_name}-curves",
    )
    return (matched if costs else Markup()) + whole


def _gain_at(curve: dict, cost: float) -> Cell:
    return interval_cell(next((at["gain"] for at in curve["at_cost"] if at["cost"] == cost), None), signed=True)


def _cell(value: Interval, signed: bool = False) -> Cell:
    return interval_cell(asdict(value), signed)
