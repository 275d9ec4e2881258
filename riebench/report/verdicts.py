"""The section that a report opens with: the verdict of each category, beside the planted block where it is known, and
the pictures of one case (`examples.py`)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any
from urllib.parse import quote

import pandas as pd
from markupsafe import Markup

from riebench.analysis.planted import (
    BY,
    FALSE,
    RECOVERED,
    Count,
    count_planted,
    outcome_of,
    planted_of,
    told_tables,
)
from riebench.analysis.verdicts import NO_CASE, short
from riebench.report.examples import Example, Shown, examples_of, has_ceiling
from riebench.report.markup import number
from riebench.report.rendering import ENVIRONMENT
from riebench.report.words import SUCCESS, label_of, words

MARKS = {RECOVERED: "✓ ", FALSE: "✗ "}


def verdicts_section(
    summary: dict,
    frame: pd.DataFrame,
    run_folder: Path,
    prompts: Mapping[str, tuple[str, str]] = MappingProxyType({}),
) -> Markup:
    """Returns a table with a row a category: the planted block where it is known, the verdicts of the headline's method
    and of those that need no SAE, and the pictures of a case.

    frame: the run's scores. prompts: edit id -> (original prompt, edited prompt).
    """
    planted, examples = planted_of(summary), examples_of(summary, frame, run_folder)
    columns = _columns(summary)
    rows = []
    for category in summary["categories"]:
        block, example = planted.get(category, ""), examples.get(category)
        verdicts = [found["categories"][category]["dominant"].get(value, NO_CASE) for found, value in columns.values()]
        told = [block or "not known"] if planted else []
        rows.append(
            {
                "category": words(category),
                "change": changed_words(*prompts[example.edit]) if example and example.edit in prompts else (),
                "told": told + [_verdict(verdict, block) for verdict in verdicts],
                "pictures": _tiles(category, example) if example else [],
            }
        )
    kind = "planted" if planted else "named"
    pictures = ("original", "edited", f"{kind} block alone", "next block alone")
    most = max((len(row["pictures"]) for row in rows), default=0)
    return Markup(
        ENVIRONMENT.get_template("verdicts.html").render(
            rows=rows,
            told=[*(["planted block"] if planted else []), *columns],
            pictures=pictures[:most],
            kind=kind,
            planted=bool(planted),
            method=label_of({**summary["dominance"][0], "blocks": ""}, summary),
            oracle=SUCCESS in summary["values"],
            ceiling=has_ceiling(frame),
        )
    )


def truth_answer(summary: dict) -> str:
    """Returns in sentences how many verdicts name the planted block; "" where no block is known."""
    planted = planted_of(summary)
    said = []
    for found in told_tables(summary) if planted else ():
        counted = {by: count_planted(found, value, planted) for value, by in BY.items()}
        parts = [
            f"{one.recovered} of {one.categories} as planted {by}{_others(one)}" for by, one in counted.items() if one
        ]
        if parts:
            name = label_of({**found, "blocks": ""}, summary)
            said.append(
                f"{'Of' if said else 'Verdicts of'} {name}{', which needs no SAE' if said else ''}: {', '.join(parts)}."
            )
    if not said:
        return ""
    return (
        "The right answers are known for this model: it was built so that the words of each category’s edits can enter "
        f"by one block alone, the planted one. {' '.join(said)}"
    )


def changed_words(original: str, edited: str) -> tuple[str, str]:
    """Returns what of two prompts differs: the words between those that both begin and those that both end with."""
    one, other = original.split(), edited.split()
    least = min(len(one), len(other))
    start = next((i for i in range(least) if one[i] != other[i]), least)
    end = next((i for i in range(least - start) if one[-1 - i] != other[-1 - i]), least - start)
    return " ".join(one[start : len(one) - end]), " ".join(other[start : len(other) - end])


def _others(counted: Count) -> str:
    """Returns in how many categories another block is named, and in how many none; "" where in none of either."""
    parts = [f"{count} name {what}" for count, what in ((counted.false, "another"), (counted.unnamed, "none")) if count]
    return f" ({', '.join(parts)})" if parts else ""


def _columns(summary: dict) -> dict[str, tuple[dict, str]]:
    """Returns head of a column -> (a table of the summary's `dominance`, the value that its verdicts are on)."""
    columns = {}
    for found in told_tables(summary):
        for value, by in BY.items():
            if value in summary["values"]:
                columns[f"{label_of({**found, 'blocks': ''}, summary)}, {by}"] = (found, value)
    return columns


def _verdict(verdict: str, planted: str) -> str:
    """Returns a verdict, with a mark for whether it is the planted block where that is known."""
    return (MARKS.get(outcome_of(verdict, planted), "– ") if planted else "") + short(verdict)


def _tiles(category: str, example: Example) -> list[dict[str, Any]]:
    names = ("original", "edited", *(f"{one.block} alone" for one in example.pictures[2:]))
    return [
        {
            "path": quote(one.path, safe="/@+"),
            "alt": f"{words(category)}, {example.edit}, seed {example.seed}: {name}",
            "words": _words(one),
        }
        for name, one in zip(names, example.pictures, strict=True)
    ]


def _words(shown: Shown) -> list[str]:
    if not shown.block:
        return []
    done = (
        f"gain {number(shown.gain, signed=True)}" if shown.success is None else "done" if shown.success else "not done"
    )
    return [f"{shown.block}: {done}"]
