"""HTML from data, by the macros of `templates/markup.html`. All text is escaped, but for what is `Markup` already."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from riebench.analysis.statistics import Interval
from riebench.report.rendering import ENVIRONMENT

_MACROS: Any = ENVIRONMENT.get_template("markup.html").module


@dataclass(frozen=True)
class Cell:
    """A cell of a table that sorts, and is downloaded, as a number."""

    text: str
    value: float | None
    """None where there is none: it sorts last."""
    low: float | None = None
    high: float | None = None
    """The ends of the value's interval, downloaded as columns of their own."""
    withheld: str = ""
    """Why there are no ends, downloaded in their place."""


def table(
    caption: str,
    head: Sequence[str],
    rows: Iterable[Sequence[str | Cell]],
    *,
    sortable: bool = False,
    file_name: str = "",
) -> Markup:
    """Returns a table whose first column names the row.

    sortable: `tables.js` makes its heads into buttons. file_name: without suffix; `downloads.js` offers the table as
    CSV under it, "" for no download.
    """
    return _MACROS.table(caption, head, rows, sortable, file_name)


def figure(picture: Markup, caption: str, below: str = "", *, file_name: str = "") -> Markup:
    """Returns a picture and what belongs to it. file_name: `downloads.js` offers the picture as SVG under it, and the
    table in `below`, if there is one, as CSV."""
    return _MACROS.figure(picture, caption, below, file_name)


def choice(label: str, panels: Mapping[str, Markup]) -> Markup:
    """Returns panels by name; `choices.js` shows one at a time, chosen from a list with that label."""
    return _MACROS.choice(label, panels)


def details(title: str, inside: Markup) -> Markup:
    """Returns what is shown when its title is clicked."""
    return _MACROS.details(title, inside)


def paragraph(text: str) -> Markup:
    """Returns a paragraph of text."""
    return _MACROS.paragraph(text)


def wrapped(inside: Markup) -> Markup:
    """Returns a table in which long words are broken."""
    return _MACROS.wrapped(inside)


def definitions(entries: Mapping[str, str], *, kind: str = "") -> Markup:
    """Returns terms with what is said of them. kind: a class of the style sheet, as "short" or "facts", where both
    stand beside each other."""
    return _MACROS.definitions(entries, kind)


def number(value: float | None, signed: bool = False) -> str:
    """Returns three decimals, with a true minus sign; an en dash for None."""
    if value is None:
        return "–"
    text = f"{value:+.3f}" if signed else f"{value:.3f}"
    text = text.replace("-", "−")
    return text if text.strip("+−0.") else text.lstrip("+−")


def interval(value: Interval | None, signed: bool = False) -> str:
    """Returns mean and interval: `0.12 [0.10, 0.14]`, or `0.12 too few edits`."""
    if value is None:
        return "–"
    if value.withheld:
        return f"{number(value.mean, signed)} {value.withheld}"
    return f"{number(value.mean, signed)} [{number(value.low)}, {number(value.high)}]"


def p_value(p: float | None) -> str:
    """Returns a p of three decimals, or that it is below the least of them; an en dash for None."""
    if p is None:
        return "–"
    return "< 0.001" if p < 0.001 else f"{p:.3f}"
