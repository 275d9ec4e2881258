"""Which method failed in how many cases, and why: what terminal, report, summary and comparison say of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from riebench.core.scores import CASE

SHOWN = 3  # reasons of a method in a sentence


def failures_of(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Returns each method, at each strength, that failed in a case, in the order of the frame, as plain values.

    `method`, `strength`; `planned`: how many cases (edit, seed) it was to do; `failed`: in how many of them some result
    of it failed; `reasons`: reason -> number of these cases, the most frequent first. A case counts once, for the first
    of its reasons; the method's name before a reason is left out. frame: of scores, of one run.
    """
    found = []
    for (method, strength), rows in frame.groupby(["method", "strength"], sort=False):
        lost = rows[rows["status"] == "failed"].groupby(CASE, sort=False)["reason"].first()
        if len(lost):
            reasons = lost.astype(str).str.removeprefix(f"{method}: ").value_counts()
            found.append(
                {
                    "method": str(method),
                    "strength": float(strength),
                    "planned": len(rows[CASE].drop_duplicates()),
                    "failed": len(lost),
                    "reasons": {str(reason): int(count) for reason, count in reasons.items()},
                }
            )
    return found


def failure_sentences(failures: Sequence[Mapping[str, Any]], methods: int = 0) -> list[str]:
    """Returns what `failures_of` found, a sentence for each method, as "sae failed in 3 of 90 cases: no region found".

    methods: how many methods and strengths there are; where all of them failed alike, one sentence says so of every
    method.
    """
    if len(failures) == methods > 1 and all(_counts(one) == _counts(failures[0]) for one in failures):
        return [_sentence("every method", failures[0])]
    names = [one["method"] for one in failures]
    return [
        _sentence(one["method"] if names.count(one["method"]) == 1 else f"{one['method']}@{one['strength']:g}", one)
        for one in failures
    ]


def in_every_case(failures: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Returns those of `failures_of` that are of every case."""
    return [one for one in failures if one["failed"] == one["planned"]]


def without_valid_case(failures: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns the methods, each once, that failed in every case, at some strength."""
    return list(dict.fromkeys(one["method"] for one in in_every_case(failures)))


def _counts(failure: Mapping[str, Any]) -> list[Any]:
    return [failure[key] for key in ("planned", "failed", "reasons")]


def _sentence(name: str, failure: Mapping[str, Any]) -> str:
    reasons = list(failure["reasons"].items())
    said = [reason if len(reasons) == 1 else f"{reason} ({count:,})" for reason, count in reasons[:SHOWN]]
    if len(reasons) > SHOWN:
        said.append(f"and {len(reasons) - SHOWN} other reasons")
    cases = "case" if failure["planned"] == 1 else "cases"
    return f"{name} failed in {failure['failed']} of {failure['planned']} {cases}: {'; '.join(said)}"
