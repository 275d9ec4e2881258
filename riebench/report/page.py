"""The report of a run: `report.html`, one file that needs no network."""

from __future__ import annotations

import json
from collections.abc import Mapping
from html import escape
from importlib import resources
from pathlib import Path
from string import Template
from types import MappingProxyType

import pandas as pd

from riebench.analysis.dominance import MIN_EDITS, NOT_SEPARABLE
from riebench.analysis.frames import NOOP, SCORE_BY_NAME, SCORES, Setting
from riebench.analysis.statistics import Interval
from riebench.files import write_text
from riebench.report.examples import COST, HEADLINE, Example, Tile, choose_examples
from riebench.report.figures import HeatRow, Point, heat_picture, trade_off
from riebench.report.markup import definitions, details, figure, interval, number, p_value, paragraph, table

ALL = "all"
VALUE_TITLES = {
    "clip_text_edited": "edit gain (CLIP cosine with the edited prompt)",
    "oracle_success": "oracle success",
    "lpips_original": "preservation cost (LPIPS to the original)",
}
METHOD_COLUMNS = ("lpips_original", "lpips_outside", "oracle_success", "oracle_preservation")
NUM_COLOURS = 8


def write_report(
    run_folder: Path,
    summary: dict,
    scores: pd.DataFrame,
    manifest: dict,
    *,
    prompts: Mapping[str, tuple[str, str]] = MappingProxyType({}),
) -> Path:
    """Writes `run_folder/report.html` and returns its path.

    summary: of `riebench.analysis.summarise`. scores: the run's frame, whose `image` paths are relative to the folder.
    prompts: edit id -> (original prompt, edited prompt), shown with the example images. Images that are missing are
    shown as missing. Raises `UserError` where the page cannot be written.
    """
    run_folder = Path(run_folder)
    title = f"riebench run: {run_folder.resolve().name}"
    sections = {
        "Blocks": _blocks(summary),
        "Methods": _methods(summary),
        "Trade-off": _trade_off(summary),
        "Examples": _examples(summary, scores, run_folder, prompts),
        "Failures": _failures(summary),
        "What was run": _manifest(manifest),
    }
    overall = summary["overall"]
    page = Template(resources.files(__package__).joinpath("page.html").read_text(encoding="utf-8")).substitute(
        title=escape(title),
        subtitle=escape(
            f"{summary['backbone']}, {_count(summary['steps'], 'step')}, {summary['mode']} mode. "
            f"{overall['cases']} of {_count(summary['planned'], 'case')} valid, "
            f"on {_count(overall['edits'], 'edit')} in {_count(len(summary['categories']), 'category', 'categories')}."
        ),
        navigation="\n".join(f'<a href="#{_anchor(name)}">{escape(name)}</a>' for name in sections),
        min_edits=str(MIN_EDITS),
        sections="\n".join(
            f'<section id="{_anchor(name)}"><h2>{escape(name)}</h2>\n{inside}</section>'
            for name, inside in sections.items()
        ),
    )
    path = run_folder / "report.html"
    write_text(path, page)
    return path


def _blocks(summary: dict) -> str:
    if summary["dominance"] is None:
        return paragraph("Block effects were not measured: they need one method run on every subset of the blocks.")
    rows = _rows_by_category(summary)
    what = f"{summary['dominance']['method']} at strength {summary['dominance']['strength']:g}"
    parts = [f'<div class="answer">{paragraph(_answer(summary))}</div>']
    for value in summary["values"]:
        picture = figure(
            _heat(summary, value),
            f"Shapley value of each block for {VALUE_TITLES[value]}, {what}, with 95 % intervals over edits. "
            "Blue is a positive value, orange a negative one; an outline marks a block that dominates.",
            details(
                f"Numbers: share, solo, leave-one-out and Shapley for {VALUE_TITLES[value]}",
                table(
                    f"Effects of each block on {VALUE_TITLES[value]}: mean and 95 % interval",
                    ("category", "edits", "block", "share", "solo", "leave-one-out", "Shapley"),
                    [
                        (
                            _words(category),
                            str(row["edits"]),
                            block,
                            "–" if effect["share"] is None else f"{effect['share']:.0%}",
                            *(interval(_interval(effect[e]), True) for e in ("solo", "leave_one_out", "shapley")),
                        )
                        for category, row in rows.items()
                        for block, effect in row["effects"].get(value, {}).items()
                    ],
                ),
            ),
        )
        parts.append(picture if value == HEADLINE else details(f"The same for {VALUE_TITLES[value]}", picture))
    return "\n".join(parts)


def _answer(summary: dict) -> str:
    verdicts = {category: row["dominant"].get(HEADLINE) for category, row in summary["categories"].items()}
    found: dict[str, list[str]] = {}
    for category, block in verdicts.items():
        if block not in (None, NOT_SEPARABLE):
            found.setdefault(block, []).append(_words(category))
    num_found = sum(map(len, found.values()))
    if not found:
        return "By edit gain, no category has one dominant block: the blocks are not separable on these edits."
    counted = f"{num_found} of {_count(len(verdicts), 'category', 'categories')}"
    named = "; ".join(f"{block} for {', '.join(categories)}" for block, categories in found.items())
    rest = "" if num_found == len(verdicts) else " In the others the blocks are not separable."
    return f"By edit gain, one block dominates in {counted}: {named}.{rest}"


def _heat(summary: dict, value: str) -> str:
    blocks = summary["blocks"]
    rows = []
    for category, row in _rows_by_category(summary).items():
        effects, verdict = row["effects"].get(value), row["dominant"].get(value, "no valid case")
        rows.append(
            HeatRow(
                label=_words(category),
                cells=tuple(_interval(effects[block]["shapley"]) if effects else None for block in blocks),
                marked=blocks.index(verdict) if verdict in blocks else None,
                remark=verdict,
            )
        )
    return heat_picture(
        f"Shapley value of each block by category: {VALUE_TITLES[value]}", blocks, rows, "dominant block"
    )


def _methods(summary: dict) -> str:
    main, subsets = _split(summary)
    head = ("method", "gain in CLIP, edited prompt", "p (Holm)", *(SCORE_BY_NAME[s].label for s in METHOD_COLUMNS))

    def line(row: dict) -> tuple[str, ...]:
        gain = row["gains"][HEADLINE]
        return (
            _label(row, summary),
            interval(_interval(gain), signed=True),
            p_value(gain["p_holm"]) if gain else "–",
            *(interval(_interval(row["scores"][score])) for score in METHOD_COLUMNS),
        )

    every_score = table(
        "All scores: mean and 95 % interval",
        ("method", *(f"{score.label} ({_direction(score.better)})" for score in SCORES)),
        [
            (_label(row, summary), *(interval(_interval(row["scores"][score.name])) for score in SCORES))
            for row in summary["methods"]
        ],
    )
    parts = [
        table(
            f"Methods on the same {_count(summary['overall']['cases'], 'case')}: mean and 95 % interval over edits",
            head,
            [line(row) for row in main],
        )
    ]
    if subsets:
        parts.append(
            details("Subsets of the blocks", table("The same for subsets of the blocks", head, map(line, subsets)))
        )
    parts.append(details("All scores", every_score + definitions({score.label: score.meaning for score in SCORES})))
    if summary["left_out"]:
        rows = [(_label(setting, summary), setting["reason"]) for setting in summary["left_out"]]
        parts.append(
            table("Left out of every table, for want of a valid result", ("method", "most common reason"), rows)
        )
    return "\n".join(parts)


def _trade_off(summary: dict) -> str:
    main, subsets = _split(summary)
    colours = {
        name: i % NUM_COLOURS for i, name in enumerate(dict.fromkeys(row["method"] for row in [*main, *subsets]))
    }
    points = [
        Point(
            label=row["blocks"] if small else _label(row, summary),
            x=_interval(row["scores"][COST]),
            y=_interval(row["gains"][HEADLINE]) or Interval(0.0, 0.0, 0.0),
            colour=colours[row["method"]],
            small=small,
            labelled=not small or row["blocks"] in summary["blocks"],
        )
        for rows, small in ((main, False), (subsets, True))
        for row in rows
    ]
    numbers = table(
        "The points of the figure",
        ("method", "preservation cost", "edit gain"),
        [(point.label, interval(point.x), interval(point.y, signed=True)) for point in points],
    )
    return figure(
        trade_off(
            "Edit gain against preservation cost of each method",
            "preservation cost: LPIPS to the original (left keeps more)",
            "edit gain: CLIP cosine (up edits more)",
            points,
        ),
        "Up and to the left is better. Bars are 95 % intervals over edits. Small points are one method on subsets of "
        "the blocks; single blocks are named.",
        details("Numbers", numbers),
    )


def _examples(summary: dict, scores: pd.DataFrame, run_folder: Path, prompts: Mapping[str, tuple[str, str]]) -> str:
    judged = _judged(summary)
    examples = choose_examples(scores, run_folder, judged, tuple(summary["blocks"])) if judged else []
    if not examples:
        return paragraph("The run kept no images to show.")
    by_category: dict[str, list[Example]] = {}
    for example in examples:
        by_category.setdefault(example.category, []).append(example)
    intro = paragraph(
        f"Per category the cases with the highest and the lowest edit gain of {judged.method}, and one at random. "
        f"Second row: {judged.method} on each block alone. Under each image: edit gain, and LPIPS to the original."
    )
    return intro + "\n".join(
        details(_words(category), "".join(_strip(example, prompts) for example in of_category), is_open=i == 0)
        for i, (category, of_category) in enumerate(by_category.items())
    )


def _strip(example: Example, prompts: Mapping[str, tuple[str, str]]) -> str:
    words = f"{example.chosen_as.capitalize()}: {example.edit}, seed {example.seed}"
    prompt = " → ".join(prompts.get(example.edit, ()))
    rows = "".join(
        f'<ul class="strip">{"".join(_tile(tile, example) for tile in tiles)}</ul>'
        for tiles in (example.methods, example.solo)
        if tiles
    )
    return f"<h3>{escape(words)}</h3>{paragraph(prompt) if prompt else ''}{rows}"


def _tile(tile: Tile, example: Example) -> str:
    alt = f"{tile.label} image of {example.edit}, seed {example.seed}"
    picture = (
        f'<img loading="lazy" alt="{escape(alt)}" src="{tile.image}">'
        if tile.image
        else '<div class="none">no image</div>'
    )
    return (
        f"<li>{picture}<b>{escape(tile.label)}</b>"
        f"<span>gain {escape(number(tile.gain, signed=True))}</span><span>LPIPS {escape(number(tile.cost))}</span></li>"
    )


def _failures(summary: dict) -> str:
    rows = [
        (_words(category), reason, str(count), f"{count / row['planned']:.0%}")
        for category, row in summary["categories"].items()
        for reason, count in row["failed"].items()
    ]
    if not rows:
        return paragraph(f"All {summary['planned']} planned cases are valid under every setting.")
    lost = f"{summary['planned'] - summary['overall']['cases']} of {_count(summary['planned'], 'planned case')}"
    return paragraph(f"In no table, because at least one setting failed on them: {lost}.") + table(
        "Cases left out, by category and reason", ("category", "reason", "cases", "of the category"), rows
    )


def _manifest(manifest: dict) -> str:
    rows = [(name, text) for name, text in _flat(manifest)]
    return f'<div class="wrap">{table("The run’s manifest", ("what", "value"), rows)}</div>'


def _flat(value: object, name: str = "") -> list[tuple[str, str]]:
    if isinstance(value, dict) and (value or not name):
        return [row for key, inner in value.items() for row in _flat(inner, f"{name}.{key}" if name else str(key))]
    if isinstance(value, list) and any(isinstance(item, dict) for item in value):
        return [row for i, item in enumerate(value, start=1) for row in _flat(item, f"{name}.{i}")]
    if isinstance(value, (list, tuple)):
        return [(name, ", ".join(map(str, value)))]
    return [(name, value if isinstance(value, str) else json.dumps(value, default=str))]


def _judged(summary: dict) -> Setting | None:
    """The setting that examples are ranked by: the one of the block effects, or else the first that edits anything."""
    every = "+".join(summary["blocks"])
    if summary["dominance"]:
        return Setting(summary["dominance"]["method"], summary["dominance"]["strength"], every)
    return next((_setting(row) for row in summary["methods"] if row["blocks"]), None)


def _rows_by_category(summary: dict) -> dict[str, dict]:
    return {**summary["categories"], ALL: summary["overall"]}


def _split(summary: dict) -> tuple[list[dict], list[dict]]:
    """The methods on all their blocks, and those on subsets of the blocks."""
    whole = ("", "+".join(summary["blocks"]))
    rows = summary["methods"]
    return [row for row in rows if row["blocks"] in whole], [row for row in rows if row["blocks"] not in whole]


def _label(row: dict, summary: dict) -> str:
    strengths = {other["strength"] for other in summary["methods"] if other["method"] == row["method"]}
    strength = f" ×{row['strength']:g}" if len(strengths) > 1 or row["strength"] != 1 and row["method"] != NOOP else ""
    subset = f" on {row['blocks']}" if row["blocks"] not in ("", "+".join(summary["blocks"])) else ""
    return f"{row['method']}{strength}{subset}"


def _setting(row: dict) -> Setting:
    return Setting(row["method"], row["strength"], row["blocks"])


def _interval(cell: dict | None) -> Interval | None:
    return None if cell is None else Interval(cell["mean"], cell["low"], cell["high"])


def _direction(better: str) -> str:
    return {"higher": "higher is better", "lower": "lower is better", "neither": "no direction"}[better]


def _words(category: str) -> str:
    return category.replace("_", " ")


def _count(number_of: int, one: str, many: str = "") -> str:
    return f"{number_of} {one if number_of == 1 else many or one + 's'}"


def _anchor(name: str) -> str:
    return name.lower().replace(" ", "-")
