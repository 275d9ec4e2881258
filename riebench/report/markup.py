"""HTML from data. Every function escapes the text that it is given, unless its name says that it is markup."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from riebench.analysis.statistics import Interval


def table(caption: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose first column names the row."""
    header = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in head)
    body = "".join(
        f'<tr><th scope="row">{escape(first)}</th>{"".join(f"<td>{escape(cell)}</td>" for cell in rest)}</tr>\n'
        for first, *rest in rows
    )
    return (
        f'<div class="scroll" tabindex="0"><table><caption>{escape(caption)}</caption>'
        f"<thead><tr>{header}</tr></thead>\n<tbody>{body}</tbody></table></div>"
    )


def figure(picture_markup: str, caption: str, below_markup: str = "") -> str:
    picture = f'<div class="scroll" tabindex="0">{picture_markup}</div>'
    return f"<figure>{picture}<figcaption>{escape(caption)}</figcaption></figure>{below_markup}"


def details(title: str, inside_markup: str, is_open: bool = False) -> str:
    return f"<details{' open' if is_open else ''}><summary>{escape(title)}</summary>{inside_markup}</details>"


def paragraph(text: str) -> str:
    return f"<p>{escape(text)}</p>"


def definitions(entries: dict[str, str]) -> str:
    return "<dl>" + "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in entries.items()) + "</dl>"


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
