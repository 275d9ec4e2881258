"""The section of methods: tables over all categories and of each, and strengths chosen on one half of the edits."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from markupsafe import Markup

from riebench.report.markup import Cell, choice, definitions, details, p_value, paragraph, table
from riebench.report.words import (
    COST,
    DIRECTIONS,
    GAIN,
    OVERALL,
    count_of,
    interval_cell,
    label_of,
    number_cell,
    words,
)

#: The scores of the first table, beside the gain; the others are one click away.
FIRST = (COST, "lpips_outside", "oracle_success", "oracle_preservation")


def methods_section(summary: dict) -> Markup:
    """Returns the tables of methods, with what their scores mean."""
    panels = {OVERALL: summary["methods"]} | {
        words(category): rows for category, rows in summary["methods_by_category"].items()
    }
    parts = [choice("Category", {name: _panel(name, rows, summary) for name, rows in panels.items()})]
    if summary["chosen_strengths"]:
        parts.append(_chosen_strengths(summary["chosen_strengths"]))
    if summary["left_out"]:
        rows = [(label_of(setting, summary), setting["reason"]) for setting in summary["left_out"]]
        parts.append(
            table("Left out of every table, for want of a valid result", ("method", "most common reason"), rows)
        )
    meanings = {
        f"{score['label']} ({DIRECTIONS[score['better']]})": score["meaning"]
        + (f". {score['network']}" if score["network"] else "")
        + (f". {score['source']}" if score["source"] else "")
        for score in summary["scores"]
    }
    parts.append(details("What the scores mean", definitions(meanings)))
    return Markup("\n").join(parts)


def split(rows: Iterable[dict], blocks: Sequence[str]) -> tuple[list[dict], list[dict]]:
    """Returns the rows of methods on all their blocks, and those on subsets of the blocks."""
    whole: list[dict] = []
    parts: list[dict] = []
    for row in rows:
        (whole if row["blocks"] in ("", "+".join(blocks)) else parts).append(row)
    return whole, parts


def _panel(name: str, rows: list[dict], summary: dict) -> Markup:
    whole, subsets = split(rows, summary["blocks"])
    file_name = f"methods-{name.replace(' ', '-')}"
    cases, edits = count_of(rows[0]["cases"], "case"), count_of(rows[0]["edits"], "edit")
    parts = [
        _first_table(
            f"Methods, {name}, on the same {cases} of {edits}: mean and 95 % interval over edits",
            whole,
            summary,
            file_name,
        ),
        details(f"All scores, {name}", _every_score(name, whole, summary, file_name)),
    ]
    parts += _counted(rows, summary)
    if subsets and name == OVERALL:
        words_of = "The same for subsets of the blocks"
        parts.append(details("Subsets of the blocks", _first_table(words_of, subsets, summary, f"{file_name}-subsets")))
    return Markup().join(parts)


def _first_table(caption: str, rows: list[dict], summary: dict, file_name: str) -> Markup:
    scores = {score["name"]: score for score in summary["scores"]}
    shown = [name for name in FIRST if name in scores]
    with_spread = any(row["seed_spread"].get(GAIN) is not None for row in rows)
    spread = (f"spread of {scores[GAIN]['label']} over seeds",) if with_spread else ()

    def line(row: dict) -> list[str | Cell]:
        gain = row["gains"].get(GAIN)
        cells: list[str | Cell] = [
            label_of(row, summary),
            interval_cell(gain, signed=True),
            Cell(p_value(gain["p_holm"]), gain["p_holm"]) if gain else Cell("–", None),
            *(interval_cell(row["scores"].get(name)) for name in shown),
        ]
        return [*cells, number_cell(row["seed_spread"].get(GAIN))] if with_spread else cells

    head = (
        "method",
        f"gain in {scores[GAIN]['label']}",
        "p (Holm)",
        *(scores[name]["label"] for name in shown),
        *spread,
    )
    return table(caption, head, map(line, rows), sortable=True, file_name=file_name)


def _counted(rows: list[dict], summary: dict) -> list[Markup]:
    """Returns a sentence on the scores that are not counted on every case."""
    labels = {score["name"]: score["label"] for score in summary["scores"]}
    found: dict[str, str] = {}
    for row in rows:
        for score, count in row["counted"].items():
            found.setdefault(score, f"{labels[score]} on {count:,}")
    if not found:
        return []
    return [
        paragraph(
            f"Of the {count_of(rows[0]['cases'], 'case')} these scores are averaged over those on which all methods "
            f"have them: {'; '.join(found.values())}. On the others they are undefined or withheld for some method."
        )
    ]


def _every_score(name: str, rows: list[dict], summary: dict, file_name: str) -> Markup:
    scores = summary["scores"]
    means = table(
        f"All scores, {name}: mean and 95 % interval",
        ("method", *(f"{score['label']} ({DIRECTIONS[score['better']]})" for score in scores)),
        [[label_of(row, summary), *(interval_cell(row["scores"].get(s["name"])) for s in scores)] for row in rows],
        sortable=True,
        file_name=f"{file_name}-all-scores",
    )
    if all(spread is None for row in rows for spread in row["seed_spread"].values()):
        return means
    return means + table(
        f"Spread over the seeds, {name}: sample standard deviation of the mean over edits",
        ("method", *(score["label"] for score in scores)),
        [[label_of(row, summary), *(number_cell(row["seed_spread"].get(s["name"])) for s in scores)] for row in rows],
        sortable=True,
        file_name=f"{file_name}-seed-spread",
    )


def _chosen_strengths(chosen: dict[str, dict]) -> Markup:
    rows = [
        (
            method,
            ", ".join(f"{strength:g}" for strength in found["strengths"]),
            ", ".join(f"{strength:g}" for strength in found["chosen"].values()),
            interval_cell(found["gain"], signed=True),
            interval_cell(found["cost"]),
            interval_cell(found["optimistic_gain"], signed=True),
        )
        for method, found in chosen.items()
    ]
    head = (
        "method",
        "strengths",
        "chosen on each half",
        "edit gain",
        "preservation cost",
        "gain if chosen on all edits",
    )
    return paragraph(
        "Where a method was run at several strengths, the best one is chosen on one half of the edits and reported on "
        "the other, both ways round. A strength that is chosen and reported on the same edits looks too good: that is "
        "the last column."
    ) + table("Strengths chosen on one half of the edits", head, rows, sortable=True, file_name="chosen-strengths")
