"""The page of an entry: its scores by category, block chart, images, cost, failures, and what exactly was run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jinja2 import PackageLoader
from markupsafe import Markup

from riebench.analysis.planted import BY, count_planted, planted_of
from riebench.analysis.verdicts import NO_CASE, explained, short, verdicts_of
from riebench.core.json_text import json_text
from riebench.leaderboard.entries import Entry
from riebench.leaderboard.site_words import ALL, category_words, in_order, rows_by_category, web_address
from riebench.report.figures import HeatRow, heat_picture
from riebench.report.markup import definitions, details, figure, number, p_value, paragraph, table, wrapped
from riebench.report.rendering import environment
from riebench.report.words import COST, GAIN, VALUES, count_cell, interval_cell, interval_of

#: The environment of the site's templates.
ENVIRONMENT = environment(PackageLoader("riebench.leaderboard", "site"))
_MACROS: Any = ENVIRONMENT.get_template("entry_parts.html").module

#: The scores of the first table, where the entry has them; all of them are in the second.
HEADLINE_SCORES = (COST, "lpips_outside", "edit_efficiency", "oracle_success")
STRIP_SCORES = (GAIN, COST, "oracle_success")
#: Kind of picture in a strip -> its caption.
PICTURES = {"original": "original", "edited": "edited (the target)", "regions": "mask", "intervened": "this entry"}
ARROWS = {"higher": " ↑", "lower": " ↓", "neither": ""}
#: Keys of an entry that have a section of their own; the others are listed as they are.
TOLD = {
    *("name", "title", "description", "authors", "code", "submitted", "sees_edited_image", "chosen"),
    *("metrics", "aggregates", "dominance", "images", "cost", "failures"),
}


def entry_sections(entry: Entry, standing: str, picture_addresses: Mapping[str, str]) -> dict[str, Markup]:
    """Returns title -> markup of each section of the page.

    standing: where it ranks, as a sentence. picture_addresses: file name in the entry's `images/` -> address on the
    site; a picture that is not among them is shown as missing.
    """
    content = entry.content
    return {
        "About": _about(content, standing),
        "Scores": _scores(content),
        "Blocks": _blocks(content),
        "Images": _images(content, picture_addresses),
        "Cost": _cost(content["cost"]),
        "Failures": _failures(content["failures"]),
        "What was run": _what_was_run(content),
    }


def _about(content: dict, standing: str) -> Markup:
    return _MACROS.about(content, standing, web_address(content["code"]))


def _scores(content: dict) -> Markup:
    rows, metrics = rows_by_category(content), {metric["name"]: metric for metric in content["metrics"]}
    first = [name for name in HEADLINE_SCORES if name in metrics]
    headline = table(
        "Means over edits with 95 % intervals, on the entry’s own valid cases",
        ("category", "edits", "edit gain", "p (Holm)", *(metrics[name]["label"] for name in first)),
        [
            (
                category_words(category),
                count_cell(row["edits"]),
                interval_cell(gain := row["gains"].get(GAIN), signed=True),
                "–" if gain is None or gain.get("p_holm") is None else p_value(gain["p_holm"]),
                *(interval_cell(row["scores"].get(name)) for name in first),
            )
            for category, row in rows.items()
        ],
        sortable=True,
    )
    every = table(
        "All scores by category: means with 95 % intervals",
        ("score", *map(category_words, rows)),
        [
            (_with_arrow(metric), *(interval_cell(row["scores"].get(name)) for row in rows.values()))
            for name, metric in metrics.items()
        ],
    )
    meanings = table(
        "What each score is",
        ("score", "column", "meaning", "network", "source"),
        [(m["label"], m["name"], m["meaning"], m["network"] or "–", m["source"] or "–") for m in metrics.values()],
    )
    counted = {metrics[name]["label"]: count for name, count in rows[ALL]["counted"].items()}
    fewer = "; ".join(f"{label} on {count:,}" for label, count in counted.items())
    return (
        headline
        + (paragraph(f"Of the {rows[ALL]['cases']:,} cases these scores have fewer: {fewer}.") if fewer else Markup())
        + paragraph("Edit gain: CLIP cosine with the edited prompt, less that of the original image.")
        + details("All scores", every)
        + details("What the scores are", wrapped(meanings))
    )


def _blocks(content: dict) -> Markup:
    effects = content["dominance"]
    if effects is None:
        return paragraph("Not measured: block effects need the method run on enough subsets of the blocks.")
    how = (
        f"{effects['method']} at strength {effects['strength']:g}, {effects['estimator']}, {effects['subsets']} subsets"
    )
    planted = planted_of(content)
    parts: list[Markup] = []
    for value in effects["overall"]["dominant"]:
        name = VALUES.get(value, value)
        picture = figure(
            _block_chart(effects, value, content),
            f"Shapley value of each block for {name}; {how}; with 95 % intervals over edits. Blue is a positive value, "
            "orange a negative one; an outline marks a block that dominates"
            f"{', a dot the planted one' if planted else ''}.",
            _explanation(effects, value),
        )
        parts.append(details(f"The same for {name}", picture) if parts else picture)
    return (paragraph(_truth(effects, planted)) if planted else Markup()) + Markup().join(parts)


def _truth(effects: dict, planted: Mapping[str, str]) -> str:
    """Returns how many verdicts name the planted block."""
    counts = {by: count_planted(effects, value, planted) for value, by in BY.items()}
    said = "; ".join(
        f"{by} in {one.recovered} of {one.categories} categories, another in {one.false}, none in {one.unnamed}"
        for by, one in counts.items()
        if one
    )
    return f"The weights of this model let each category’s edits in by one block, the planted one. It is named {said}."


def _explanation(effects: dict, value: str) -> Markup:
    """Returns why no block is named in some categories, and what to do."""
    rows = {
        **{category_words(name): row for name, row in effects["categories"].items()},
        category_words(ALL): effects["overall"],
    }
    reasons = explained(verdicts_of(rows, value))
    return definitions({f"{reason}: {categories}": remedy for reason, categories, remedy in reasons})


def _block_chart(effects: dict, value: str, content: dict) -> Markup:
    rows, blocks, planted = [], content["blocks"], planted_of(content)
    of_categories = effects["categories"]
    groups = {**{name: of_categories[name] for name in in_order(of_categories)}, ALL: effects["overall"]}
    for category, row in groups.items():
        of_blocks = row["effects"].get(value, dict.fromkeys(blocks))
        verdict = row["dominant"].get(value, NO_CASE)
        rows.append(
            HeatRow(
                label=category_words(category),
                cells=tuple(of_blocks[block] and interval_of(of_blocks[block]["shapley"]) for block in blocks),
                marked=blocks.index(verdict) if verdict in blocks else None,
                remark=short(verdict),
                dotted=blocks.index(planted[category]) if planted.get(category) in blocks else None,
            )
        )
    title = f"Shapley value of each block by category: {VALUES.get(value, value)}"
    return heat_picture(title, blocks, rows, "dominant block")


def _images(content: dict, addresses: Mapping[str, str]) -> Markup:
    labels = {metric["name"]: metric["label"] for metric in content["metrics"] if metric["name"] in STRIP_SCORES}
    return _MACROS.images(content["chosen"], [_strip(case, labels, addresses) for case in content["images"]])


def _strip(case: dict, labels: Mapping[str, str], addresses: Mapping[str, str]) -> dict:
    """Returns what the template shows of a case: title, prompts, where, scores, and pictures as (caption, address, None
    for a missing one, and what is read out in its place)."""
    title, where = category_words(case["category"]), f"{case['edit']}, seed {case['seed']}"
    return {
        "title": title,
        "prompts": f"“{case['prompt_original']}” → “{case['prompt_edited']}”",
        "where": where,
        "scores": " · ".join(f"{label} {number(case['scores'].get(name))}" for name, label in labels.items()),
        "pictures": [
            (caption, addresses.get(case[kind]), f"{title}, {where}: {caption}") for kind, caption in PICTURES.items()
        ],
    }


def _cost(cost: dict) -> Markup:
    return definitions(
        {
            "Features": _figure(cost["num_features"]),
            "Injected norm": _figure(cost["injected_norm"]),
            "forwards an image": _figure(cost["forwards_per_image"]),
            "Seconds an image": _figure(cost["seconds_per_image"]),
            "Device": cost["device"] or "–",
            "Machine": cost["machine"] or "–",
        },
        kind="facts",
    )


def _failures(failures: dict) -> Markup:
    rows = [
        (category_words(category), reason, count_cell(count))
        for category, reasons in failures.items()
        for reason, count in reasons.items()
    ]
    if not rows:
        return paragraph("No case failed.")
    return table("Cases left out, by category and reason", ("category", "reason", "cases"), rows)


def _what_was_run(content: dict) -> Markup:
    rest = {key: value for key, value in content.items() if key not in TOLD}
    rest["hashes"] = {key: value for key, value in content["hashes"].items() if key != "images"}
    return wrapped(table("Settings, versions and hashes of the entry", ("what", "value"), _leaves(rest)))


def _leaves(value: object, name: str = "") -> list[tuple[str, str]]:
    """Returns (dotted name, text) of each leaf of nested dicts; a list is one leaf."""
    if isinstance(value, dict):
        return [row for key, inner in value.items() for row in _leaves(inner, f"{name}.{key}" if name else str(key))]
    if isinstance(value, list) and not any(isinstance(item, (dict, list)) for item in value):
        return [(name, ", ".join(map(str, value)))]
    return [(name, value if isinstance(value, str) else json_text(value, ensure_ascii=False))]


def _with_arrow(metric: dict) -> str:
    return metric["label"] + ARROWS[metric["better"]]


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:,.4g}"
