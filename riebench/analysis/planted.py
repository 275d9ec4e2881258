"""Verdicts of a run beside the blocks that are known to carry its categories: the planted ones.

Only a model whose weights were built that way has such blocks; the summary of any other names none, and nothing here
says anything of it.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any, NamedTuple

from riebench.analysis.dominance import GAIN
from riebench.analysis.verdicts import NO_CASE, NOT_SEPARABLE, WIDTH, names_block

RECOVERED, FALSE = "recovered", "false"
#: Methods that show without a dictionary where a model takes an edit's words from.
COMPARATORS = ("prompt-injection", "attention-patch")
SUCCESS = "oracle_success"
#: Value -> how it is called where verdicts on it are counted; the headline first.
BY = {GAIN: "by gain in CLIP", SUCCESS: "by oracle success"}


class Count(NamedTuple):
    """In how many of the categories whose block is known a method names that block, another, or none."""

    recovered: int
    false: int
    unnamed: int

    @property
    def categories(self) -> int:
        """Returns the number of categories whose block is known."""
        return sum(self)


def outcome_of(verdict: str, planted: str) -> str:
    """Returns whether a verdict names the planted block (`RECOVERED`), another one (`FALSE`), or none
    (`NOT_SEPARABLE`)."""
    return RECOVERED if verdict == planted else FALSE if names_block(verdict) else NOT_SEPARABLE


def planted_of(summary: Mapping[str, Any]) -> dict[str, str]:
    """Returns category -> its planted block, for those categories of a summary of which it is known; empty for a
    model without known truth, and for a summary that was written before it was told."""
    return dict(summary.get("planted", {}))


def count_planted(found: Mapping[str, Any], value: str, planted: Mapping[str, str]) -> Count | None:
    """Returns how often the verdicts of a table of the summary's `dominance`, or of an entry's, name the planted block.

    value: the score whose effects the verdicts are on. None where no block is known, and where no category has a
    verdict on that value.
    """
    verdicts = {category: row["dominant"] for category, row in found["categories"].items() if category in planted}
    if not any(value in row for row in verdicts.values()):
        return None
    outcomes = [outcome_of(row.get(value, NO_CASE), planted[category]) for category, row in verdicts.items()]
    return Count(*(outcomes.count(one) for one in (RECOVERED, FALSE, NOT_SEPARABLE)))


def told_tables(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns the tables of a summary's `dominance` whose verdicts are told side by side: the headline's, then those of
    methods without a dictionary."""
    return [*summary["dominance"][:1], *(one for one in summary["dominance"][1:] if one["method"] in COMPARATORS)]


def truth_lines(summary: Mapping[str, Any]) -> list[str]:
    """Returns the lines that stand below the table of Shapley values: what planted means, and how many verdicts of the
    headline's method and of each comparator name the planted block; none where no block is known."""
    planted = planted_of(summary)
    if not planted or not summary["dominance"]:
        return []
    lines = ["Planted: the one block by which this model's weights let the words of a category's edits in."]
    for found in told_tables(summary):
        for value, by in BY.items():
            counted = count_planted(found, value, planted)
            if counted:
                lines.append(f"{found['method']}, {by}: {_sentence(counted)}")
    return [part for line in lines for part in textwrap.wrap(line, WIDTH, subsequent_indent="    ")]


def _sentence(counted: Count) -> str:
    return (
        f"{counted.recovered} of {counted.categories} categories name the planted block; "
        f"{counted.false} name another; {counted.unnamed} name none"
    )
