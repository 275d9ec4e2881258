"""Inline SVG figures. Colours, fonts and line widths come from the page's style sheet."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from riebench.analysis.statistics import Interval
from riebench.core.axes import ticks
from riebench.report.markup import interval, number

CHARACTER_WIDTH = 6.6  # of the 12 px labels, for placing them
REACHES = (9, 20, 34, 52, 76, 104, 138, 178, 224, 276)  # how far a label may stand from its point, px
APART = 2.0  # px between labels
COLOURS = 8  # of the style sheet, c0 to c7
#: Shapes of points, so that none is told by its colour alone: corners on a circle of radius 1, from the right on
#: counter-clockwise; none is the circle itself.
SHAPES: tuple[tuple[tuple[float, float], ...], ...] = (
    (),
    ((0.9, 0.9), (-0.9, 0.9), (-0.9, -0.9), (0.9, -0.9)),
    ((0.0, 1.25), (-1.1, -0.75), (1.1, -0.75)),
    ((1.25, 0.0), (0.0, 1.25), (-1.25, 0.0), (0.0, -1.25)),
    ((0.0, -1.25), (1.1, 0.75), (-1.1, 0.75)),
    tuple(
        (x, y)
        for x, y in (
            *((0.4, 1.2), (-0.4, 1.2), (-0.4, 0.4), (-1.2, 0.4), (-1.2, -0.4), (-0.4, -0.4)),
            *((-0.4, -1.2), (0.4, -1.2), (0.4, -0.4), (1.2, -0.4), (1.2, 0.4), (0.4, 0.4)),
        )
    ),
    tuple((1.15 * math.cos(math.pi * (0.5 + 0.4 * i)), 1.15 * math.sin(math.pi * (0.5 + 0.4 * i))) for i in range(5)),
    tuple(
        (size * math.cos(math.pi * (0.5 + 0.2 * i)), size * math.sin(math.pi * (0.5 + 0.2 * i)))
        for i, size in enumerate((1.4, 0.6) * 5)
    ),
)
FAR = 18  # px from which on a line leads from a point to its label


@dataclass(frozen=True)
class HeatRow:
    label: str
    cells: tuple[Interval | None, ...]
    marked: int | None
    """The place of the cell that is outlined."""
    remark: str
    """Text at the row's end."""
    dotted: int | None = None
    """The place of the cell that has a dot in its corner."""


@dataclass(frozen=True)
class Point:
    label: str
    x: Interval
    y: Interval
    style: int
    """Points of one style have one colour and one shape; those of 64 styles differ in one of both."""
    small: bool = False
    """Small points are drawn faintly and without interval bars."""
    labelled: bool = True


@dataclass(frozen=True)
class Curve:
    """A line through points (x, y)."""

    style: int
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Box:
    left: float
    top: float
    right: float
    bottom: float

    def overlap(self, other: Box) -> float:
        """Returns the shared area."""
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.bottom, other.bottom) - max(self.top, other.top)
        return max(width, 0.0) * max(height, 0.0)

    def contains(self, other: Box) -> bool:
        """Returns whether the other box lies within this one."""
        return (
            self.left <= other.left
            and self.top <= other.top
            and self.right >= other.right
            and self.bottom >= other.bottom
        )


def heat_picture(title: str, columns: Sequence[str], rows: Sequence[HeatRow], remark_title: str) -> Markup:
    """Draws a table of coloured cells with means and intervals; a colour's depth is the mean over the largest size.

    It is drawn twice, for wide and for narrow screens, of which the style sheet shows one: on the narrow one a row's
    label and remark stand above its cells.
    """
    return _heat(title, columns, rows, remark_title, narrow=False) + _heat(
        title, columns, rows, remark_title, narrow=True
    )


def _heat(title: str, columns: Sequence[str], rows: Sequence[HeatRow], remark_title: str, *, narrow: bool) -> Markup:
    left, cell_width, right, above = (0, 112, 0, 22) if narrow else (150, 124, 160, 0)
    cell_height, top = 42, 30
    end = left + cell_width * len(columns)
    width, height = end + right, top + (above + cell_height) * len(rows) + 4
    largest = max((abs(cell.mean) for row in rows for cell in row.cells if cell), default=0.0) or 1.0
    parts = [
        _text(left + cell_width * (i + 0.5), top - 10, column, "middle", "head") for i, column in enumerate(columns)
    ]
    if not narrow:
        parts.append(_text(end + 12, top - 10, remark_title, "start", "head"))
    for r, row in enumerate(rows):
        y = top + r * (above + cell_height) + above
        line = y - 6 if narrow else y + cell_height / 2 + 4
        parts.append(_text(0, line, row.label, "start") if narrow else _text(left - 10, line, row.label, "end"))
        for c, cell in enumerate(row.cells):
            x = left + c * cell_width
            if cell is None:
                parts.append(_text(x + cell_width / 2, y + cell_height / 2 + 4, "–", "middle", "faint"))
                continue
            place = {"x": x + 1.5, "y": y + 1.5, "width": cell_width - 3, "height": cell_height - 3}
            depth = f"{0.75 * abs(cell.mean) / largest:.3f}"
            parts.append(
                element(
                    "g",
                    element("title", f"{row.label}, {columns[c]}: {interval(cell, signed=True)}"),
                    element("rect", class_="cell", **place),
                    element("rect", class_="loss" if cell.mean < 0 else "gain", fill_opacity=depth, **place),
                    _text(x + cell_width / 2, y + 18, number(cell.mean, signed=True), "middle", "mean"),
                    _text(x + cell_width / 2, y + 33, _range(cell), "middle", "range"),
                )
            )
        if row.marked is not None:
            place = {"x": left + row.marked * cell_width + 2.5, "y": y + 2.5}
            parts.append(element("rect", class_="marked", **place, width=cell_width - 5, height=cell_height - 5))
        if row.dotted is not None:
            x = left + (row.dotted + 1) * cell_width - 11
            parts.append(element("circle", class_="dot", cx=f"{x:.1f}", cy=f"{y + 11:.1f}", r=4))
        weight = "faint" if row.marked is None else "mean"
        place, anchor = (end, "end") if narrow else (end + 12, "start")
        parts.append(_text(place, line, row.remark, anchor, weight))
    return _svg(title, width, height, parts, "narrow" if narrow else "wide")


def trade_off(
    title: str,
    x_label: str,
    y_label: str,
    points: Sequence[Point],
    curves: Sequence[Curve] = (),
    *,
    narrow: bool = False,
) -> Markup:
    """Draws points with 95 % interval bars in both directions, labels placed where they touch no other and hide the
    least, and curves. narrow: for narrow screens; the style sheet shows one of both."""
    width, height = (468 if narrow else 1000), 540
    plot = Box(64, 16, width - 20, height - 52)
    reaching = [p for p in points if not p.small]
    xs = [v for p in points for v, _ in (_ends(p)[:1] if p.small else _ends(p))] + [0.0]
    ys = [v for p in points for _, v in (_ends(p)[:1] if p.small else _ends(p))] + [0.0]
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
        parts.append(_line(px, plot.top, px, plot.bottom, "grid"))
        parts.append(_text(px, plot.bottom + 18, _tick(x, x_ticks), "middle", "range"))
    for y in y_ticks:
        _, py = at(0, y)
        parts.append(_line(plot.left, py, plot.right, py, "zero" if y == 0 else "grid"))
        parts.append(_text(plot.left - 8, py + 4, _tick(y, y_ticks), "end", "range"))
    parts.append(_text((plot.left + plot.right) / 2, height - 10, x_label, "middle"))
    middle = (plot.top + plot.bottom) / 2
    parts.append(element("g", _text(14, middle + 4, y_label, "middle"), transform=f"rotate(-90 14 {middle})"))

    for curve in curves:
        along = " ".join(f"{px:.1f},{py:.1f}" for px, py in (at(x, y) for x, y in curve.points))
        parts.append(element("polyline", class_=f"curve c{curve.style % COLOURS}", points=along))
    for point in reaching:
        (x, y), (x1, y1), (x2, y2) = (at(*ends) for ends in _ends(point))
        parts.append(element("g", _line(x1, y, x2, y), _line(x, y1, x, y2), class_=f"bars c{point.style % COLOURS}"))
    for point in sorted(points, key=lambda p: not p.small):
        x, y = at(point.x.mean, point.y.mean)
        words = f"{point.label}: {x_label} {interval(point.x)}, {y_label} {interval(point.y, signed=True)}"
        kind, radius = ("point small", 3.5) if point.small else ("point", 6)
        parts.append(element("g", element("title", words), _mark(point.style, x, y, radius, kind)))
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
            parts.append(_line(x, y, near_x, near_y, "leader"))
        parts.append(_text(box.left, box.bottom - 3, point.label, "start", "label faint" if point.small else "label"))
    return _svg(title, width, height, parts, "narrow" if narrow else "wide")


def place_labels(
    labels: Sequence[str], anchors: Sequence[tuple[float, float]], taken: Sequence[Box], plot: Box
) -> list[Box]:
    """Returns a box for each label beside its anchor, in turn where it overlaps least with what is there already."""
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
        wide = [Box(box.left - APART, box.top - APART, box.right + APART, box.bottom + APART) for box in placed]
        best = min(inside, key=lambda box: (_hidden(box, wide), _hidden(box, taken)))
        if _hidden(best, wide):
            best = _nearest_free(x, y, width, height, wide, plot) or best
        placed.append(best)
    return placed


def _nearest_free(x: float, y: float, width: float, height: float, taken: Sequence[Box], plot: Box) -> Box | None:
    """Returns the box of that size within the plot that is nearest to a point and overlaps no other, on a grid; None
    where the plot is full."""
    lefts = [plot.left + step * 12 for step in range(int((plot.right - plot.left - width) // 12) + 1)]
    tops = [plot.top + step * (height + APART) for step in range(int((plot.bottom - plot.top) // (height + APART)))]
    boxes = [Box(left, top, left + width, top + height) for left in lefts for top in tops]
    free = [box for box in boxes if not _hidden(box, taken)]
    return min(free, key=lambda box: math.hypot(box.left - x, box.top - y), default=None)


def _hidden(box: Box, others: Sequence[Box]) -> float:
    return sum(box.overlap(other) for other in others)


def _mark(style: int, x: float, y: float, radius: float, kind: str) -> Markup:
    """Returns the mark of a point, in the colour and the shape of its style."""
    corners = SHAPES[(style + style // COLOURS) % len(SHAPES)]
    if corners:
        path = "M" + "L".join(f"{x + radius * dx:.1f},{y - radius * dy:.1f}" for dx, dy in corners) + "Z"
    else:
        around = f"a{radius},{radius} 0 1 0"
        path = f"M{x - radius:.1f},{y:.1f}{around} {2 * radius},0{around} {-2 * radius},0Z"
    return element("path", class_=f"{kind} c{style % COLOURS}", d=path)


def _ends(point: Point) -> tuple[tuple[float, float], ...]:
    """Returns (x, y) of the point's mean and of the lower and upper ends of its intervals, the mean where it has
    none."""
    (x, *of_x), (y, *of_y) = (
        (one.mean, *(one.mean if end is None else end for end in (one.low, one.high))) for one in (point.x, point.y)
    )
    return (x, y), *zip(of_x, of_y, strict=True)


def _range(interval: Interval) -> str:
    return interval.withheld or f"{number(interval.low)} to {number(interval.high)}"


def _tick(value: float, marks: Sequence[float]) -> str:
    decimals = max(0, -math.floor(math.log10(marks[1] - marks[0]) + 1e-9))
    return f"{value:.{decimals}f}".replace("-", "−")


def element(name: str, *inside: str, **attributes: object) -> Markup:
    """Returns an element of an SVG, in which the texts inside and the attributes are escaped; `Markup` is not.

    An underscore in an attribute's name stands for a hyphen, and one at its end, as in `class_`, for nothing. An
    attribute that is "" is left out.
    """
    named = {key.rstrip("_").replace("_", "-"): value for key, value in attributes.items() if value != ""}
    written = Markup().join(Markup(' {}="{}"').format(key, value) for key, value in named.items())
    if not inside:
        return Markup("<{}{}/>").format(name, written)
    return Markup("<{0}{1}>{2}</{0}>").format(name, written, Markup().join(inside))


def _text(x: float, y: float, text: str, anchor: str, kind: str = "") -> Markup:
    return element("text", text, class_=kind, x=f"{x:.1f}", y=f"{y:.1f}", text_anchor=anchor)


def _line(x1: float, y1: float, x2: float, y2: float, kind: str = "") -> Markup:
    return element("line", class_=kind, x1=f"{x1:.1f}", y1=f"{y1:.1f}", x2=f"{x2:.1f}", y2=f"{y2:.1f}")


def _svg(title: str, width: float, height: float, parts: Sequence[Markup], kind: str) -> Markup:
    size = {"viewBox": f"0 0 {width} {height}", "width": width, "height": height}
    about = {"class_": kind, **size, "role": "img", "aria_label": title}
    return element("svg", element("title", title), *parts, **about)
