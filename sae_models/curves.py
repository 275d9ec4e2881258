"""The course of a training is drawn here: explained variance, L0, dead features and loss over the steps, in SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from riebench.core.axes import ticks

MOST_LINES = 6  # autoencoders drawn one by one; of more, the mean and the range
MOST_POINTS = 600  # of a line
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b58900", "#444444")
DASHES = ("", "9 4", "4 4", "12 4 3 4", "2 3", "7 2 2 2")  # lines that lie on one another show all the same
LEFT, TOP, WIDTH, HEIGHT = 70, 92, 370, 220  # of the first panel's frame
ACROSS, DOWN = 460, 290  # from one panel to the next
LEGEND_ROW = 20
LETTERS = 84  # of a legend's label that there is room for
STYLE = """
text { font: 12px system-ui, sans-serif; fill: #222 }
.title { font-size: 17px; font-weight: 600 } .head { font-size: 13px; font-weight: 600 } .faint { fill: #666 }
.number { font-variant-numeric: tabular-nums; text-anchor: end }
.grid { stroke: #e2e2e2 } .frame { fill: none; stroke: #888 } .line { fill: none; stroke-width: 1.8 }
"""


@dataclass(frozen=True)
class Panel:
    """This describes one of the four pictures."""

    name: str
    """What a line of the log calls it."""
    title: str
    short: str
    """What stands over its column of the legend."""
    decimals: int
    scale: float = 1.0
    """What its numbers are multiplied by to be shown."""
    log: bool = False


PANELS = (
    Panel("ev", "explained variance (share of 1)", "EV", 3),
    Panel("l0", "L0 (active features a row)", "L0", 1),
    Panel("dead", "dead features (%)", "dead %", 1, scale=100),
    Panel("loss", "loss (logarithmic)", "loss", 4, log=True),
)


def curves(lines: Sequence[dict[str, Any]], title: str, remark: str, labels: Sequence[str]) -> str:
    """Returns a whole SVG file of the lines of a log, at least one.

    remark: stands under the title. labels: one an autoencoder.

    Up to six autoencoders have a line each; of more, there are the mean and the range from the least to the largest.
    The legend has the last values. Values that are not finite are left out, and explained variance below 0 is cut off.
    """
    lines = lines[:: -math.ceil(len(lines) / MOST_POINTS)][::-1]  # with the last
    steps = [line["step"] for line in lines]
    many = len(labels) > MOST_LINES
    labels = [f"mean of {len(labels)} SAEs", "all, from the least to the largest"] if many else labels
    bottom = TOP + DOWN + HEIGHT + 62
    height = bottom + LEGEND_ROW * (len(labels) + 1)
    parts = [_text(LEFT - 50, 32, title, "title"), _text(LEFT - 50, 54, remark, "faint")]
    for number, panel in enumerate(PANELS):
        columns = list(zip(*([each[panel.name] * panel.scale for each in line["saes"]] for line in lines), strict=True))
        x, y = LEFT + number % 2 * ACROSS, TOP + number // 2 * DOWN
        parts.append(f'<g transform="translate({x} {y})">{_panel(panel, steps, columns, many)}</g>')
        right = LEFT + ACROSS + WIDTH - (120 if many else 80) * (len(PANELS) - 1 - number)
        parts.append(_text(right, bottom, panel.short, "head number"))
        for row, text in enumerate(_last(panel, [column[-1] for column in columns], many), start=1):
            parts.append(_text(right, bottom + LEGEND_ROW * row, text, "number"))
    parts.append(_text(LEFT - 50, bottom, f"at step {steps[-1]:,}", "head"))
    for row, label in enumerate(labels):
        y = bottom + LEGEND_ROW * (row + 1)
        parts.append(
            _band(((LEFT - 50, y - 9, y), (LEFT - 18, y - 9, y)))
            if many and row
            else _line(((LEFT - 50, y - 4), (LEFT - 18, y - 4)), row)
        )
        parts.append(_text(LEFT - 8, y, label if len(label) <= LETTERS else f"{label[: LETTERS - 1]}…"))
    inside = "\n".join(parts)
    width = LEFT + ACROSS + WIDTH + 20
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img"><title>{escape(title)}</title><style>{STYLE}</style>\n'
        f'<clipPath id="frame"><rect x="-4" y="-4" width="{WIDTH + 8}" height="{HEIGHT + 8}"/></clipPath>\n'
        f'<rect width="{width}" height="{height}" fill="#fff"/>\n{inside}</svg>\n'
    )


def _panel(panel: Panel, steps: Sequence[int], columns: Sequence[Sequence[float]], many: bool) -> str:
    """Returns one picture. columns: the values over the steps of each autoencoder."""
    values = [value for column in columns for value in column if _is_drawn(value, panel)] or [1.0]
    if panel.log:
        y_ticks = log_ticks(min(values), max(values))
    else:
        low, room = (max(0.0, min(values)), 1.0) if panel.name == "ev" else (0.0, 1.05)
        y_ticks = ticks(low, max(low, room * max(values)), 5)
    x_ticks = ticks(0, steps[-1], 5)

    def at_x(step: float) -> float:
        return WIDTH * step / x_ticks[-1]

    def at_y(value: float) -> float:
        low, high, value = (math.log(v) if panel.log else v for v in (y_ticks[0], y_ticks[-1], value))
        return HEIGHT * (1 - (value - low) / (high - low))

    parts = [_text(0, -10, panel.title, "head")]
    for tick in x_ticks:
        parts.append(f'<line class="grid" x1="{at_x(tick):.1f}" x2="{at_x(tick):.1f}" y1="0" y2="{HEIGHT}"/>')
        parts.append(_text(at_x(tick), HEIGHT + 17, _number(tick), anchor="middle"))
    for tick in y_ticks:
        parts.append(f'<line class="grid" x1="0" x2="{WIDTH}" y1="{at_y(tick):.1f}" y2="{at_y(tick):.1f}"/>')
        parts.append(_text(-8, at_y(tick) + 4, _number(tick), anchor="end"))
    parts.append(_text(WIDTH / 2, HEIGHT + 34, "step", "faint", anchor="middle"))
    parts.append(f'<rect class="frame" width="{WIDTH}" height="{HEIGHT}"/><g clip-path="url(#frame)">')
    rows = [
        (step, [value for value in row if _is_drawn(value, panel)])
        for step, row in zip(steps, zip(*columns, strict=True), strict=True)
    ]
    if many:
        full = [(step, row) for step, row in rows if row]
        parts.append(_band([(at_x(step), at_y(max(row)), at_y(min(row))) for step, row in full]))
        parts.append(_line([(at_x(step), at_y(sum(row) / len(row))) for step, row in full], 0))
    for number, column in enumerate(() if many else columns):
        drawn = [
            (at_x(step), at_y(value)) for step, value in zip(steps, column, strict=True) if _is_drawn(value, panel)
        ]
        parts.append(_line(drawn, number))
    return "".join(parts) + "</g>"


def log_ticks(low: float, high: float) -> list[float]:
    """Returns 1, 2 and 5 times powers of ten that enclose [low, high], or over more than two decades the powers
    alone."""
    factors = (1,) if high > 100 * low else (1, 2, 5)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 2)
    found = [factor * 10.0**power for power in powers for factor in factors]
    first = max(place for place, tick in enumerate(found) if tick <= low * (1 + 1e-9))
    last = min(place for place, tick in enumerate(found) if tick >= high * (1 - 1e-9))
    return found[first : max(last, first + 1) + 1]


def _is_drawn(value: float, panel: Panel) -> bool:
    return math.isfinite(value) and (value > 0 or not panel.log)


def _last(panel: Panel, values: Sequence[float], many: bool) -> list[str]:
    """Returns the last values, or their mean and their range."""
    if not many:
        return [f"{value:.{panel.decimals}f}" for value in values]
    low, high, mean = min(values), max(values), sum(values) / len(values)
    return [f"{mean:.{panel.decimals}f}", f"{low:.{panel.decimals}f}–{high:.{panel.decimals}f}"]


def _line(points: Sequence[tuple[float, float]], number: int) -> str:
    """Returns a line that ends in a dot, so that a single point shows."""
    colour, dash = COLOURS[number], f' stroke-dasharray="{DASHES[number]}"' if DASHES[number] else ""
    shown = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    dot = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="{colour}"/>' for x, y in points[-1:])
    return f'<polyline class="line" stroke="{colour}"{dash} points="{shown}"/>{dot}'


def _band(edges: Sequence[tuple[float, float, float]]) -> str:
    """Returns a filled band. edges: x, and y of both edges."""
    around = [(x, upper) for x, upper, _ in edges] + [(x, lower) for x, _, lower in reversed(edges)]
    shown = " ".join(f"{x:.1f},{y:.1f}" for x, y in around)
    return f'<polygon fill="{COLOURS[0]}" fill-opacity="0.2" points="{shown}"/>'


def _text(x: float, y: float, text: str, kind: str = "", anchor: str = "") -> str:
    anchor = f' text-anchor="{anchor}"' if anchor else ""
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}"{anchor}>{escape(text)}</text>'


def _number(value: float) -> str:
    return f"{value:,.6g}"
