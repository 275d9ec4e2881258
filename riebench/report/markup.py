"""HTML from data. Every function escapes the text that it is given, unless its name says that it is markup."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from riebench.analysis.statistics import Interval


@dataclass(frozen=True)
class Cell:
    """A cell of a table that sorts, and is downloaded, as a number."""

    text: str
    value: float | None
    """None where there is none: it sorts last."""
    low: float | None = None
    high: float | None = None
    """The ends of the value's interval, downloaded as columns of their own."""


def table(
    caption: str,
    head: Sequence[str],
    rows: Iterable[Sequence[str | Cell]],
    *,
    sortable: bool = False,
    file_name: str = "",
) -> str:
    """A table whose first column names the row.

    sortable: `tables.js` makes its heads into buttons. file_name: without suffix; `downloads.js` offers the table as
    CSV under it, "" for no download.
    """
    header = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in head)
    body = "".join(
        f"<tr>{_cell(first, 'th', scope='row')}{''.join(_cell(cell, 'td') for cell in rest)}</tr>\n"
        for first, *rest in rows
    )
    kind = ' class="sortable"' if sortable else ""
    name = f' data-file="{escape(file_name)}"' if file_name else ""
    return (
        f'<div class="scroll" role="group" tabindex="0" aria-label="{escape(caption)}"><table{kind}{name}>'
        f"<caption>{escape(caption)}</caption><thead><tr>{header}</tr></thead>\n<tbody>{body}</tbody></table></div>"
    )


def _cell(cell: str | Cell, tag: str, scope: str = "") -> str:
    attributes = f' scope="{scope}"' if scope else ""
    if isinstance(cell, str):
        return f"<{tag}{attributes}>{escape(cell)}</{tag}>"
    numbers = "".join(
        f' data-{name}="{"" if value is None else f"{value:.6g}"}"'
        for name, value in (("value", cell.value), ("low", cell.low), ("high", cell.high))
        if name == "value" or value is not None
    )
    return f"<{tag}{attributes}{numbers}>{escape(cell.text)}</{tag}>"


def figure(picture_markup: str, caption: str, below_markup: str = "", *, file_name: str = "") -> str:
    """A picture and what belongs to it. file_name: `downloads.js` offers the picture as SVG under it, and the table in
    `below_markup`, if there is one, as CSV."""
    picture = f'<div class="scroll" role="group" tabindex="0" aria-label="Figure">{picture_markup}</div>'
    name = f' data-file="{escape(file_name)}"' if file_name else ""
    return f"<figure{name}>{picture}<figcaption>{escape(caption)}</figcaption>{below_markup}</figure>"


def choice(label: str, panels: Mapping[str, str]) -> str:
    """Panels of markup by name; `choices.js` shows one at a time, chosen from a list with that label."""
    inside = "\n".join(f'<div data-name="{escape(name)}">{markup}</div>' for name, markup in panels.items())
    return f'<div class="choice" data-label="{escape(label)}">{inside}</div>'


def details(title: str, inside_markup: str, is_open: bool = False) -> str:
    return f"<details{' open' if is_open else ''}><summary>{escape(title)}</summary>{inside_markup}</details>"


def paragraph(text: str) -> str:
    return f"<p>{escape(text)}</p>"


def definitions(entries: Mapping[str, str], *, short: bool = False) -> str:
    """short: terms and what is said of them stand beside each other."""
    kind = ' class="short"' if short else ""
    return f"<dl{kind}>" + "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in entries.items()) + "</dl>"


def number(value: float | None, signed: bool = False) -> str:
    """Three decimals, with a true minus sign; an en dash for None."""
    if value is None:
        return "–"
    text = f"{value:+.3f}" if signed else f"{value:.3f}"
    text = text.replace("-", "−")
    return text if text.strip("+−0.") else text.lstrip("+−")


def interval(value: Interval | None, signed: bool = False) -> str:
    """Mean and interval: `0.12 [0.10, 0.14]`."""
    if value is None:
        return "–"
    return f"{number(value.mean, signed)} [{number(value.low)}, {number(value.high)}]"


def p_value(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def titled(sections_markup: Mapping[str, str]) -> str:
    """Sections under their titles: title -> markup inside."""
    return "\n".join(
        f'<section id="{_anchor(title)}"><h2>{escape(title)}</h2>\n{inside}</section>'
        for title, inside in sections_markup.items()
    )


def links_to(titles: Iterable[str]) -> str:
    """Links to the sections of those titles on the same page."""
    return "\n".join(f'<a href="#{_anchor(title)}">{escape(title)}</a>' for title in titles)


def policy_digest(text: str) -> str:
    """How a Content-Security-Policy names an inline style or script."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _anchor(title: str) -> str:
    return title.lower().replace(" ", "-")
