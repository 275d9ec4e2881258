"""The sections of what was asked, what was run and what failed."""

from __future__ import annotations

from collections.abc import Mapping

from markupsafe import Markup

from riebench.analysis.failures import failure_sentences
from riebench.core.json_text import json_text
from riebench.report.markup import definitions, details, paragraph, table, wrapped
from riebench.report.words import count_cell, count_of, share_cell, words

NOT_SETTINGS = ("name", "class", "strength", "sites", "sees_edited_image")


def asked_section(summary: dict, manifest: Mapping) -> Markup:
    """Returns the configuration in words, and the methods with their settings."""
    config = _mapping(manifest.get("config"))
    edits, seeds = _mapping(manifest.get("edits")), config.get("seeds")
    per_category = config.get("edits_per_category")
    said = {
        "Backbone": f"{summary['backbone']}, {count_of(summary['steps'], 'step')}",
        "Mode": summary["mode"],
        "Edits": ", ".join(
            part
            for part in (
                f"{edits['count']} of the set {config.get('edits')}" if "count" in edits else "",
                f"at most {per_category} a category" if per_category else "",
                count_of(len(summary["categories"]), "category", "categories"),
            )
            if part
        ),
        "Seeds": ", ".join(map(str, seeds)) if isinstance(seeds, (list, tuple)) else "",
        "Blocks": ", ".join(summary["blocks"]),
        "On subsets of the blocks": _text(config.get("subsets_of", "")),
        "Left out": "; ".join(
            f"{_text(one.get('method', ''))}: {_text(one.get('why', ''))}"
            for one in _mappings(manifest.get("left_out"))
        ),
        "Intervals": f"from {summary['resamples']:,} bootstrap resamples of the edits, seed {summary['seed']}",
    }
    rows = [
        (_text(method.get("name", "")), _text(method.get("strength", "")), _settings(method))
        for method in _mappings(manifest.get("methods"))
    ]
    listed = table("Methods and their settings", ("method", "strength", "settings"), rows, file_name="settings")
    return definitions({key: text for key, text in said.items() if text}, kind="short") + (
        details(f"{count_of(len(rows), 'method')} and their settings", wrapped(listed)) if rows else Markup()
    )


def run_section(manifest: Mapping) -> Markup:
    """Returns versions, machine and cost, and the whole manifest in details."""
    versions = _mapping(manifest.get("versions"))
    said = {
        "Versions": ", ".join(f"{name} {version}" for name, version in versions.items())
        + (f", Python {manifest['python']}" if "python" in manifest else ""),
        "Machine": ", ".join(str(manifest[name]) for name in ("device", "machine") if name in manifest),
        "Started": _text(manifest.get("started", "")),
        "Time": f"{manifest['seconds']} s" if "seconds" in manifest else "",
        "Results": ", ".join(
            f"{manifest[name]:,} {what}" if isinstance(manifest[name], int) else f"{manifest[name]} {what}"
            for name, what in (("results", "in all"), ("made", "made by this command"))
            if name in manifest
        ),
        "Forward passes": _text(manifest.get("forwards", "")),
    }
    whole = wrapped(table("The run’s manifest", ("what", "value"), _flat(manifest), file_name="manifest"))
    return definitions({key: text for key, text in said.items() if text}, kind="short") + details(
        "The whole manifest", whole
    )


def failures_section(summary: dict) -> Markup:
    """Returns which methods failed in how many cases, and how many cases are in no table, by category and reason."""
    failures = summary["failures"]
    said = Markup("").join(
        paragraph(f"{sentence}.") for sentence in failure_sentences(failures, len(summary["methods"]))
    )
    rows = [
        (words(category), reason, count_cell(count), share_cell(count / row["planned"]))
        for category, row in summary["categories"].items()
        for reason, count in row["failed"].items()
    ]
    if not rows:
        under = "every other setting, and in the tables" if failures else "every setting"
        return said + paragraph(f"All {summary['planned']:,} planned cases are valid under {under}.")
    lost = f"{summary['planned'] - summary['overall']['cases']:,} of {count_of(summary['planned'], 'planned case')}"
    return (
        said
        + paragraph(f"In no table, because at least one setting failed on them: {lost}.")
        + table(
            "Cases left out, by category and reason",
            ("category", "reason", "cases", "of the category"),
            rows,
            sortable=True,
            file_name="failures",
        )
    )


def _settings(method: Mapping) -> str:
    return ", ".join(
        f"{words(str(name))} {_text(value)}"
        for name, value in method.items()
        if name not in NOT_SETTINGS and value not in ("", None)
    )


def _mapping(value: object) -> Mapping:
    """Returns the value, or an empty mapping where it is none: a manifest may come from anywhere."""
    return value if isinstance(value, Mapping) else {}


def _mappings(value: object) -> list[Mapping]:
    """Returns the mappings of a list, none where it is no list."""
    return [item for item in (value if isinstance(value, (list, tuple)) else ()) if isinstance(item, Mapping)]


def _text(value: object) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_text, value))
    return value if isinstance(value, str) else json_text(value, default=str)


def _flat(value: object, name: str = "") -> list[tuple[str, str]]:
    if isinstance(value, dict) and (value or not name):
        return [row for key, inner in value.items() for row in _flat(inner, f"{name}.{key}" if name else str(key))]
    if isinstance(value, list) and any(isinstance(item, dict) for item in value):
        return [row for i, item in enumerate(value, start=1) for row in _flat(item, f"{name}.{i}")]
    return [(name, _text(value))]
