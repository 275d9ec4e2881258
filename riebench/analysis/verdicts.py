"""Verdicts on blocks: the block that dominates, or why none is named, which are opposite answers, and what to do then.

`docs/statistics.md` defines each by intervals.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from riebench.analysis.statistics import MIN_DIFFERENT, MIN_EDITS, TOO_FEW_DIFFER, TOO_FEW_EDITS
from riebench.core.scores import LEAST_COST

NOT_SEPARABLE = "not separable"
TOO_FEW = f"{NOT_SEPARABLE}: {TOO_FEW_EDITS}"
SHARED = f"{NOT_SEPARABLE}: blocks share it"
NO_EFFECT = f"{NOT_SEPARABLE}: no block has an effect"
NO_GAIN = f"{NOT_SEPARABLE}: no block raises it"
ONE_BLOCK = f"{NOT_SEPARABLE}: there is one block"
#: No verdict, for what is measured divides by next to nothing.
WITHHELD = "withheld"
NO_CASE = "no valid case"
#: In place of a verdict on a difference: of one edit nothing is known of the spread.
ONE_EDIT = "one edit"

MOST_EDITS = 10_000  # a greater number of edits that are needed is as good as none
WIDTH = 110  # of what stands below a table


def verdict_of(own: Sequence[int], lead: int | None, wide: Sequence[int], first: int, num_edits: int) -> str:
    """Returns "" where the first block dominates, or why no block does.

    own: the side of zero that each block's Shapley value lies on, of `sides`. first: which of them is the greatest.
    lead: that of its lead over the second; None where there is one block. wide: as `own`, so that all of them hold at
    once at 95 %.
    """
    above = sum(side > 0 for side in wide)
    if lead is not None and lead > 0 and own[first] > 0:
        return ""
    if not above and num_edits < MIN_EDITS:
        return TOO_FEW
    if not above:
        return NO_GAIN if any(side < 0 for side in own) else NO_EFFECT
    if lead is None:
        return ONE_BLOCK
    return SHARED if above > 1 else TOO_FEW


def withheld_verdict(num_small: int, num_subsets: int) -> str:
    """Returns the verdict on efficiency where some subsets of the blocks change too little for a quotient."""
    return f"{WITHHELD}: {num_small} of {num_subsets} subsets of the blocks change less than LPIPS {LEAST_COST:g}"


def names_block(verdict: str) -> bool:
    """Returns whether a verdict is a block's name."""
    return not verdict.startswith((NOT_SEPARABLE, WITHHELD, NO_CASE))


def short(verdict: str) -> str:
    """Returns a verdict as cells have it: the block's name, or why there is none."""
    head, _, reason = verdict.partition(": ")
    return reason if head == NOT_SEPARABLE else head


def verdicts_of(rows: Mapping[str, Mapping[str, Any]], value: str) -> dict[str, tuple[str, int | None]]:
    """Returns category -> its verdict on a value, and the number of edits that would do, as `explained` takes them.

    rows: category -> its part of a table of the summary's `dominance`.
    """
    return {name: (row["dominant"].get(value, NO_CASE), row["edits_needed"].get(value)) for name, row in rows.items()}


#: Why an interval is withheld -> when that is, and what would do.
WHY_WITHHELD = {
    TOO_FEW_EDITS: f"intervals need at least {MIN_EDITS} edits",
    TOO_FEW_DIFFER: f"fewer than {MIN_DIFFERENT} edits differ from what most show; more edits would tell more",
}


def withheld_lines(reasons: Iterable[str]) -> list[str]:
    """Returns a line on each reason for which some interval of a table is withheld; "", of those that are not, has
    none."""
    found = set(reasons)
    return [f"No interval, {reason}: {words}." for reason, words in WHY_WITHHELD.items() if reason in found]


def explained(verdicts: Mapping[str, tuple[str, int | None]]) -> list[tuple[str, str, str]]:
    """Returns (reason, categories, what to do) of each reason for which no block is named.

    verdicts: category -> the verdict and the number of edits that would do (`Dominance.edits_needed`).
    """
    by_reason: dict[tuple[str, str], list[str]] = {}
    for category, (verdict, needed) in verdicts.items():
        if not names_block(verdict) and verdict != NO_CASE:
            by_reason.setdefault((short(verdict), what_to_do(verdict, needed)), []).append(category)
    return [(reason, ", ".join(categories), remedy) for (reason, remedy), categories in by_reason.items()]


def what_to_do(verdict: str, needed: int | None) -> str:
    """Returns what to do where no block is named; "" where one is. needed: the number of edits that would do."""
    if verdict == TOO_FEW:
        return f"run {edits_words(needed)} a category"
    if verdict == SHARED:
        return f"compare their solo and leave-one-out effects; to rank the first two, run {edits_words(needed)}"
    if verdict in (NO_EFFECT, NO_GAIN):
        return "try a greater strength, more features or another method; the intervals say how large an effect may be"
    if verdict == ONE_BLOCK:
        return "run a backbone or a site with several blocks"
    if verdict.startswith(WITHHELD):
        return f"some subsets of the blocks change less than LPIPS {LEAST_COST:g}, which nothing can be divided by"
    return ""


def edits_words(needed: int | None) -> str:
    """Returns a number of edits in words. The least with intervals is exact, the others are estimates."""
    if needed is None:
        return f"more than {MOST_EDITS:,} edits"
    return f"at least {needed} edits" if needed <= MIN_EDITS else f"about {needed:,} edits"


def explanation(columns: Mapping[str, Mapping[str, tuple[str, int | None]]]) -> list[str]:
    """Returns the lines that stand below a table of verdicts; none where every category has a block.

    columns: head of a column -> its verdicts, as of `explained`; heads are told where there are several.
    """
    lines = []
    for head, verdicts in columns.items():
        found = [f"  {reason} ({categories}): {remedy}" for reason, categories, remedy in explained(verdicts)]
        lines += ([head] if found and len(columns) > 1 else []) + found
    if not lines:
        return []
    wrapped = [part for line in lines for part in textwrap.wrap(line, WIDTH, subsequent_indent="    ")]
    return ["Where no block is named, the blocks are not separable:", *wrapped]
