"""The section of block effects: a figure and its numbers for each value, of each setting run on enough subsets."""

from __future__ import annotations

from collections.abc import Mapping

from markupsafe import Markup

from riebench.analysis.planted import planted_of
from riebench.analysis.verdicts import NO_CASE, explained, names_block, short, verdicts_of
from riebench.report.figures import HeatRow, heat_picture
from riebench.report.markup import Cell, definitions, details, figure, paragraph, table
from riebench.report.words import (
    OVERALL,
    VALUES,
    count_cell,
    count_of,
    interval_cell,
    interval_of,
    label_of,
    share_cell,
    words,
)

EFFECTS = {"solo": "solo", "leave_one_out": "leave-one-out", "shapley": "Shapley"}


def blocks_section(summary: dict) -> Markup:
    """Returns the figures of the headline's block effects, and behind them those of the other settings."""
    if not summary["dominance"]:
        return paragraph(
            "Block effects were not measured: they need a method that is run on every subset of the blocks."
        )
    headline, *others = summary["dominance"]
    parts = [_of_table(headline, summary, 0)]
    if others:
        parts.append(Markup("<h3>The same for other methods</h3>"))
        parts += [
            details(_sentence(found, summary), paragraph(answer(found, summary)) + _of_table(found, summary, place))
            for place, found in enumerate(others, start=1)
        ]
    return Markup("\n").join(parts)


def answer(found: dict, summary: dict) -> str:
    """Returns a sentence on which block dominates which categories. found: a table of the summary's `dominance`."""
    headline = summary["values"][0]
    verdicts = {category: row["dominant"].get(headline) for category, row in found["categories"].items()}
    dominant: dict[str, list[str]] = {}
    for category, block in verdicts.items():
        if block and names_block(block):
            dominant.setdefault(block, []).append(words(category))
    rest = " ".join(
        f"{reason.capitalize()} in {counted}: {remedy}."
        for reason, counted, remedy in explained(_verdicts(found, headline, found["categories"]))
    )
    if not dominant:
        return f"By edit gain, no category has one dominant block. {rest}".strip()
    num_found = sum(map(len, dominant.values()))
    counted = f"{num_found} of {count_of(len(verdicts), 'category', 'categories')}"
    named = "; ".join(f"{block} for {', '.join(categories)}" for block, categories in dominant.items())
    return f"By edit gain, one block dominates in {counted}: {named}. {rest}".strip()


def _verdicts(found: dict, value: str, rows: Mapping[str, dict]) -> dict[str, tuple[str, int | None]]:
    """Returns category, in words -> its verdict and the edits that it needs."""
    return verdicts_of({words(name): row for name, row in rows.items()}, value)


def _of_table(found: dict, summary: dict, place: int) -> Markup:
    """Returns the figure of the headline value, and those of the others in details. place: in the summary's list."""
    values = [value for value in summary["values"] if any(value in row["dominant"] for row in _rows(found).values())]
    figures = {value: _figure(found, summary, value, place) for value in values}
    return Markup("\n").join(
        picture if i == 0 else details(f"The same for {_value(value)}", picture)
        for i, (value, picture) in enumerate(figures.items())
    )


def _figure(found: dict, summary: dict, value: str, place: int) -> Markup:
    picture = heat_picture(
        f"Shapley value of each block by category: {_value(value)}, {_setting(found, summary)}",
        summary["blocks"],
        [_heat_row(category, row, value, summary) for category, row in _rows(found).items()],
        "dominant block",
    )
    numbers = table(
        f"Effects of each block on {_value(value)}: mean and 95 % interval",
        ("category", "edits", "block", "share", *EFFECTS.values()),
        [
            (words(category), count_cell(row["edits"]), block, share_cell(effect["share"]), *_effect_cells(effect))
            for category, row in _rows(found).items()
            for block, effect in row["effects"].get(value, {}).items()
        ],
        sortable=True,
    )
    return figure(
        picture,
        f"Shapley value of each block for {_value(value)}, {_sentence(found, summary)}, with 95 % intervals over "
        "edits. Blue is a positive value, orange a negative one; an outline marks a block that dominates"
        f"{', a dot the planted one' if planted_of(summary) else ''}.",
        _explanation(found, value)
        + details(f"Numbers: share, solo, leave-one-out and Shapley for {_value(value)}", numbers),
        file_name=f"blocks-{value}" + (f"-{place + 1}" if place else ""),
    )


def _effect_cells(effect: dict) -> list[Cell]:
    return [interval_cell(effect[name], signed=True) for name in EFFECTS]


def _heat_row(category: str, row: dict, value: str, summary: dict) -> HeatRow:
    effects, verdict = row["effects"].get(value), row["dominant"].get(value, NO_CASE)
    blocks, planted = summary["blocks"], planted_of(summary).get(category)
    return HeatRow(
        label=words(category),
        cells=tuple(interval_of(effects[block]["shapley"]) if effects else None for block in blocks),
        marked=blocks.index(verdict) if verdict in blocks else None,
        remark=short(verdict),
        dotted=blocks.index(planted) if planted in blocks else None,
    )


def _explanation(found: dict, value: str) -> Markup:
    """Returns why no block is named in some categories, and what to do; nothing where one is in each."""
    reasons = explained(_verdicts(found, value, _rows(found)))
    return definitions({f"{reason}: {counted}": remedy for reason, counted, remedy in reasons}) if reasons else Markup()


def _rows(found: dict) -> dict[str, dict]:
    return {**found["categories"], OVERALL: found["overall"]}


def _setting(found: dict, summary: dict) -> str:
    window = "" if found["window"] == "all" else f", steps: {found['window']}"
    return label_of({**found, "blocks": ""}, summary) + window


def _sentence(found: dict, summary: dict) -> str:
    how = "exact" if found["estimator"] == "exact" else "estimated"
    return f"{_setting(found, summary)}, {how} from {count_of(found['subsets'], 'subset')} of the blocks"


def _value(value: str) -> str:
    return VALUES.get(value, value)
