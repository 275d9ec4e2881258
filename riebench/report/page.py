"""The report of a run: `report.html` in the run folder, which needs no network and no server. Pictures are files beside
it; everything else stands in the page."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import pandas as pd

from riebench.analysis.failures import without_valid_case
from riebench.analysis.planted import planted_of
from riebench.analysis.statistics import MIN_EDITS
from riebench.analysis.summary import load_summary
from riebench.core.files import write_text
from riebench.core.scores import LEAST_COST
from riebench.report.blocks import answer, blocks_section
from riebench.report.methods import methods_section
from riebench.report.rendering import ENVIRONMENT, asset, content_policy
from riebench.report.request import asked_section, failures_section, run_section
from riebench.report.strips import strips_section
from riebench.report.trade_off import trade_off_section
from riebench.report.verdicts import truth_answer, verdicts_section
from riebench.report.words import count_of

SCRIPTS = ("tables.js", "choices.js", "downloads.js", "strips.js")


def write_report(
    run_folder: Path,
    summary: dict,
    scores: pd.DataFrame,
    manifest: dict,
    *,
    prompts: Mapping[str, tuple[str, str]] = MappingProxyType({}),
) -> Path:
    """Writes `run_folder/report.html` and returns its path.

    summary: of `riebench.analysis.summarise`. scores: the run's frame, whose paths of pictures are
    relative to the folder. prompts: edit id -> (original prompt, edited prompt), shown with the pictures. Pictures that
    are missing are shown as missing. Raises `UserError` where the page cannot be written.
    """
    run_folder, summary = Path(run_folder), load_summary(summary)
    title = f"riebench run: {run_folder.resolve().name}"
    request = {
        "What was asked": asked_section(summary, manifest),
        "What was run": run_section(manifest),
    }
    results = ({"Verdicts": verdicts_section(summary, scores, run_folder, prompts)} if summary["dominance"] else {}) | {
        "Blocks": blocks_section(summary),
        "Failures": failures_section(summary),
        "Methods": methods_section(summary),
        "Trade-off": trade_off_section(summary),
        "Strips": strips_section(summary, scores, run_folder, prompts),
    }
    lost = ", ".join(without_valid_case(summary["failures"]))
    overall, num_categories = summary["overall"], len(summary["categories"])
    style, scripts = asset("style.css"), [asset(name) for name in SCRIPTS]
    page = ENVIRONMENT.get_template("page.html").render(
        title=title,
        subtitle=(
            f"{summary['backbone']}, {count_of(summary['steps'], 'step')}, {summary['mode']} mode. "
            f"{overall['cases']:,} of {count_of(summary['planned'], 'case')} valid, "
            f"on {count_of(overall['edits'], 'edit')} in {count_of(num_categories, 'category', 'categories')}."
            f"{f' Without a valid case: {lost}.' if lost else ''}"
        ),
        policy=content_policy(style, scripts),
        style=style,
        scripts=scripts,
        titles=[*results, *request],
        answer=(truth_answer(summary) or answer(summary["dominance"][0], summary)) if summary["dominance"] else "",
        planted=bool(planted_of(summary)),
        min_edits=MIN_EDITS,
        least_cost=LEAST_COST,
        request=request,
        results=results,
    )
    path = run_folder / "report.html"
    write_text(path, page)
    return path
