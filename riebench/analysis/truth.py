"""Verdicts are held against a truth that is known, or against other methods' verdicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from riebench.analysis.across import ALL, SOURCE
from riebench.analysis.planted import COMPARATORS, FALSE, RECOVERED, outcome_of
from riebench.analysis.verdicts import NOT_SEPARABLE, names_block
from riebench.core.text_tables import aligned

OUTCOMES = (RECOVERED, FALSE, NOT_SEPARABLE)
_JUDGED = ("planted", "verdict", "outcome", "lead", "lead_low", "lead_high", "lead_interval")


def against_truth(effects: pd.DataFrame, planted: Mapping[str, Mapping[str, str]]) -> pd.DataFrame:
    """Returns each verdict of `dominance_over` beside the block that is known to carry its category.

    planted: backbone -> category -> block. A row for each source, value and category of which a block is known:
    the columns of `SOURCE`, value, category, planted, verdict, outcome (out of `OUTCOMES`), and `lead`, the planted
    block's Shapley value less the greatest of the others, with `lead_low`, `lead_high` and `lead_interval` ("95 %",
    or why there is none) where the planted block is the first.
    """
    rows = []
    for (*source, value, category), part in effects.groupby([*SOURCE, "value", "category"], sort=False):
        about = dict(zip(SOURCE, source, strict=True))
        block = planted.get(str(about["backbone"]), {}).get(str(category), "")
        shapley = part.set_index("block")["shapley"]
        if block not in shapley.index:
            continue
        verdict = str(part["verdict"].iloc[0])
        lead = shapley[block] - shapley.drop(block).max()
        known = {"lead_low": float("nan"), "lead_high": float("nan"), "lead_interval": ""}
        ends = {end: part[end].iloc[0] for end in known} if lead > 0 else known
        rows.append(
            about
            | {"value": value, "category": category, "planted": block, "verdict": verdict}
            | {"outcome": outcome_of(verdict, block), "lead": lead, **ends}
        )
    return pd.DataFrame(rows, columns=[*SOURCE, "value", "category", *_JUDGED])


def count_outcomes(judged: pd.DataFrame) -> pd.DataFrame:
    """Returns how many categories have each outcome, a row for each source and value of `against_truth`, with their
    number as `categories`."""
    keys = [*SOURCE, "value"]
    counts = judged.groupby([*keys, "outcome"], sort=False).size().unstack(fill_value=0)
    counts = counts.reindex(columns=list(OUTCOMES), fill_value=0)
    return counts.assign(categories=counts.sum(axis=1)).rename_axis(columns=None).reset_index()


def agreement_of_verdicts(effects: pd.DataFrame, value: str, with_: Sequence[str] = COMPARATORS) -> str:
    """Returns in how many categories each method of a run names the block that a comparator of the same run names, as
    plain text; empty where no run has a comparator and another method.

    effects: of `dominance_over`. with_: the methods that are compared with. "same" and "another" count categories in
    which both name a block; those with another are listed.
    """
    effects = effects[(effects["value"] == value) & (effects["category"] != ALL)]
    verdicts = effects.groupby([*SOURCE, "category"], sort=False)["verdict"].first().unstack("category", sort=False)
    cells = [["run", "method", "compared with", "same", "another", NOT_SEPARABLE, "where they name another"]]
    for source, of_method in verdicts.iterrows():
        about = dict(zip(SOURCE, source, strict=True))
        for other_source, of_other in verdicts.iterrows():
            other = dict(zip(SOURCE, other_source, strict=True))
            pair = other["method"] in with_ and about["method"] not in with_
            if not pair or any(about[key] != other[key] for key in ("run", "backbone", "steps")):
                continue
            named = [
                (category, one, two)
                for category, one, two in zip(verdicts.columns, of_method, of_other, strict=True)
                if pd.notna(one) and pd.notna(two)
            ]
            decided = [item for item in named if names_block(item[1]) and names_block(item[2])]
            differing = [f"{category} ({one}, {two})" for category, one, two in decided if one != two]
            counts = len(decided) - len(differing), len(differing), len(named) - len(decided)
            name = f"{about['method']} x{about['strength']}"
            cells.append([about["run"], name, other["method"], *map(str, counts), ", ".join(differing) or "-"])
    return "\n".join(["Agreement of verdicts", *aligned(cells)]) if len(cells) > 1 else ""
