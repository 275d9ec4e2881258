"""Inline SVG figures. Colours, fonts and line widths come from the page's style sheet."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from riebench.analysis.statistics import Interval
from riebench.core.axes import ticks
from riebench.report.markup import interval, number

CHARACTER_WIDTH = 6.6  # of the 12 px labels, for placing them
REACHES = (9, 20, 34, 52, 76)  # how far a label may stand from its point, px
FAR = 18  # px from which on a line leads from a point to its label


@dataclass(frozen=True)
class HeatRow:
    label: str
    cells: tuple[Interval | None, ...]
    marked: int | None
    """Which cell is outlined."""
    remark: str
    """Text at the row's end."""


@dataclass(frozen=True)
class Point:
    label: str
    x: Interval
    y: Interval
    colour: int
    small: bool = False
    """Small points are drawn faintly and without interval bars."""
    labelled: bool = True


@dataclass(frozen=True)
class Curve:
    """A line through points (x, y)."""

    colour: int
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Box:
    left: float
    top: float
    right: float
    bottom: float

    def overlap(self, other: Box) -> float:
        """The shared area."""
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.bottom, other.bottom) - max(self.top, other.top)
        return max(width, 0.0) * max(height, 0.0)

    def contains(self, other: Box) -> bool:
        return (
            self.left <= other.left
            and self.top <= other.top
            and self.right >= other.right
            and self.bottom >= other.bottom
        )


def heat_picture(title: str, columns: Sequence[str], rows: Sequence[HeatRow], remark_title: str) -> str:
    """A table of coloured cells with means and intervals; the colour's depth is the mean over the largest magnitude."""
    left, cell_width, cell_height, top, right = 150, 124, 42, 30, 130
    width, height = left + cell_width * len(columns) + right, top + cell_height * len(rows) + 4
    largest = max((abs(cell.mean) for row in rows for cell in row.cells if cell), default=0.0) or 1.0
    parts = [
        _text(left + cell_width * (i + 0.5), top - 10, column, "middle", "head") for i, column in enumerate(columns)
    ]
    parts.append(_text(left + cell_width * len(columns) + 12, top - 10, remark_title, "start", "head"))
    for r, row in enumerate(rows):
        y = top + r * cell_height
        parts.append(_text(left - 10, y + cell_height / 2 + 4, row.label, "end"))
        for c, cell in enumerate(row.cells):
            x = left + c * cell_width
            if cell is None:
                parts.append(_text(x + cell_width / 2, y + cell_height / 2 + 4, "–", "middle", "faint"))
                continue
            depth = 0.75 * abs(cell.mean) / largest
            kind = "loss" if cell.mean < 0 else "gain"
            parts.append(
                f"<g><title>{escape(f'{row.label}, {columns[c]}: {interval(cell, signed=True)}')}</title>"
                f'<rect class="cell" x="{x + 1.5}" y="{y + 1.5}" width="{cell_width - 3}" height="{cell_height - 3}"/>'
                f'<rect class="{kind}" fill-opacity="{depth:.3f}" x="{x + 1.5}" y="{y + 1.5}" '
                f'width="{cell_width - 3}" height="{cell_height - 3}"/>'
                + _text(x + cell_width / 2, y + 18, number(cell.mean, signed=True), "middle", "mean")
                + _text(x + cell_width / 2, y + 33, f"{number(cell.low)} to {number(cell.high)}", "middle", "range")
                + "</g>"
            )
        if row.marked is not None:
            parts.append(
                f'<rect class="marked" x="{left + row.marked * cell_width + 2.5}" y="{y + 2.5}" '
                f'width="{cell_width - 5}" height="{cell_height - 5}"/>'
            )
        weight = "" if row.marked is None else "mean"
        parts.append(
            _text(
                left + cell_width * len(columns) + 12, y + cell_height / 2 + 4, row.remark, "start", weight or "faint"
            )
        )
    return _svg(title, width, height, parts)


def trade_off(title: str, x_label: str, y_label: str, points: Sequence[Point], curves: Sequence[Curve] = ()) -> str:
    """Points with 95 % interval bars in both directions, labels placed where they hide the least, and curves."""
    width, height = 1000, 540
    plot = Box(64, 16, width - 20, height - 52)
    reaching = [p for p in points if not p.small]
    xs = [v for p in points for v in ((p.x.mean,) if p.small else (p.x.low, p.x.high))] + [0.0]
    ys = [v for p in points for v in ((p.y.mean,) if p.small else (p.y.low, p.y.high))] + [0.0]
    xs += [x for curve in curves for x, _ in curve.points]
    ys += [y for curve in curves for _, y in curve.points]
    x_ticks, y_ticks = ticks(min(xs), max(xs)), ticks(min(ys), max(ys))

    def at(x: float, y: float) -> tuple[float, float]:
        across = (x - x_ticks[0]) / (x_ticks[-1] - x_ticks[0])
        up = (y - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])
        return plot.left + across * (plot.right - plot.left), plot.bottom - up * (plot.bottom - plot.top)

    parts = []
    for x in x_ticks:
        px, _ = at(x, 0)
        parts.append(f'<line class="grid" x1="{px:.1f}" x2="{px:.1f}" y1="{plot.top}" y2="{plot.bottom}"/>')
        parts.append(_text(px, plot.bottom + 18, _tick(x, x_ticks), "middle", "range"))
    for y in y_ticks:
        _, py = at(0, y)
        kind = "zero" if y == 0 else "grid"
        parts.append(f'<line class="{kind}" x1="{plot.left}" x2="{plot.right}" y1="{py:.1f}" y2="{py:.1f}"/>')
        parts.append(_text(plot.left - 8, py + 4, _tick(y, y_ticks), "end", "range"))
    parts.append(_text((plot.left + plot.right) / 2, height - 10, x_label, "middle"))
    middle = (plot.top + plot.bottom) / 2
    parts.append(f'<g transform="rotate(-90 14 {middle})">{_text(14, middle + 4, y_label, "middle")}</g>')

    for curve in curves:
        along = " ".join(f"{px:.1f},{py:.1f}" for px, py in (at(x, y) for x, y in curve.points))
        parts.append(f'<polyline class="curve c{curve.colour}" points="{along}"/>')
    for point in reaching:
        (x, y), (x1, y1), (x2, y2) = (at(*ends) for ends in _ends(point))
        parts.append(
            f'<g class="bars c{point.colour}"><line x1="{x1:.1f}" x2="{x2:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{y1:.1f}" y2="{y2:.1f}"/></g>'
        )
    for point in sorted(points, key=lambda p: not p.small):
        x, y = at(point.x.mean, point.y.mean)
        words = f"{point.label}: {x_label} {interval(point.x)}, {y_label} {interval(point.y, signed=True)}"
        parts.append(
            f"<g><title>{escape(words)}</title>"
            f'<circle class="point{" small" if point.small else ""} c{point.colour}" cx="{x:.1f}" cy="{y:.1f}" '
            f'r="{3.5 if point.small else 6}"/></g>'
        )
    labelled = sorted((p for p in points if p.labelled), key=lambda p: p.small)
    anchors = [at(p.x.mean, p.y.mean) for p in labelled]
    taken = [Box(x - 6, y - 6, x + 6, y + 6) for x, y in (at(p.x.mean, p.y.mean) for p in points)]
    for point in reaching:
        (x, y), (x1, y1), (x2, y2) = (at(*ends) for ends in _ends(point))
        taken += [Box(x1, y - 2, x2, y + 2), Box(x - 2, y2, x + 2, y1)]
    boxes = place_labels([p.label for p in labelled], anchors, taken, plot)
    for point, (x, y), box in zip(labelled, anchors, boxes, strict=True):
        near_x, near_y = min(max(x, box.left), box.right), min(max(y, box.top), box.bottom)
        if math.hypot(near_x - x, near_y - y) > FAR:
            parts.append(f'<line class="leader" x1="{x:.1f}" y1="{y:.1f}" x2="{near_x:.1f}" y2="{near_y:.1f}"/>')
        parts.append(_text(box.left, box.bottom - 3, point.label, "start", "label faint" if point.small else "label"))
    return _svg(title, width, height, parts)


def place_labels(
    labels: Sequence[str], anchors: Sequence[tuple[float, float]], taken: Sequence[Box], plot: Box
) -> list[Box]:
    """A box for each label beside its anchor, in turn where it overlaps least with what is there already."""
    placed: list[Box] = []
    for label, (x, y) in zip(labels, anchors, strict=True):
        width, height = CHARACTER_WIDTH * len(label), 15.0
        choices = [
            Box(left, top, left + width, top + height)
            for reach in REACHES
            for left, top in (
                (x + reach, y - height / 2),
                (x - reach - width, y - height / 2),
                (x + reach * 0.7, y - reach * 0.7 - height),
                (x + reach * 0.7, y + reach * 0.7),
                (x - reach * 0.7 - width, y - reach * 0.7 - height),
                (x - reach * 0.7 - width, y + reach * 0.7),
                (x - width / 2, y - reach - height),
                (x - width / 2, y + reach),
            )
        ]
        inside = [box for box in choices if plot.contains(box)] or choices
        placed.append(min(inside, key=lambda box: sum(box.overlap(other) for other in [*taken, *placed])))
    return placed


def _ends(point: Point) -> tuple[tuple[float, float], ...]:
    """(x, y) of the point's mean and of the lower and upper ends of its intervals."""
    return (point.x.mean, point.y.mean), (point.x.low, point.y.low), (point.x.high, point.y.high)


def _tick(value: float, marks: Sequence[float]) -> str:
    decimals = max(0, -math.floor(math.log10(marks[1] - marks[0]) + 1e-9))
    return f"{value:.{decimals}f}".replace("-", "−")


def _text(x: float, y: float, text: str, anchor: str, kind: str = "") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _svg(title: str, width: float, height: float, parts: Sequence[str]) -> str:
    inside = "\n".join(parts)
    kind = ' class="wide"' if width > 620 else ""
    return (
        f'<svg{kind} viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" '
        f'aria-label="{escape(title)}"><title>{escape(title)}</title>\n{inside}</svg>'
    )
