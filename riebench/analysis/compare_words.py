"""What `compare_runs` found is put into words: markdown for a terminal or a page, and files."""

from __future__ import annotations

import math
from pathlib import Path

import pandas as pd

from riebench.analysis.compare import ALL
from riebench.analysis.failures import failure_sentences
from riebench.analysis.frames import write_csv
from riebench.analysis.statistics import MANY_EDITS, least_edits
from riebench.analysis.verdicts import NOT_SEPARABLE, ONE_EDIT, TOO_FEW_EDITS, edits_words, withheld_lines
from riebench.core.claims import claim_folder
from riebench.core.files import write_json, write_text
from riebench.core.text_tables import markdown

#: Verdicts that tell nothing.
UNTOLD = (NOT_SEPARABLE, TOO_FEW_EDITS, ONE_EDIT)


def compare_table(found: dict) -> str:
    """Returns what `compare_runs` found, as markdown whose columns also line up in a terminal."""
    metrics = {score["name"]: score for score in found["metrics"]}
    cells = {(cell["category"], cell["method"], cell["metric"]): cell for cell in found["cells"]}
    others = list(dict.fromkeys(cell["method"] for cell in found["cells"]))
    shown = [name for name in metrics if any(cell["metric"] == name for cell in found["cells"])]
    labels = {name: metrics[name]["label"] for name in shown}
    titles = {name: f"{labels[name]} ({_direction(metrics[name]['better'])})" for name in shown}
    overall = found["overall"]
    tests = f"{found['tests']} {'test' if found['tests'] == 1 else 'tests'}"
    who = ", ".join(others) if found["asked"] else "every method"
    level = found["level"] / max(found["tests"], 1)
    parts = [
        f"## {', '.join(found['runs'])}: {who} against `{found['against']}`",
        f"`{found['backbone']}`, mode {found['mode']}, seeds {', '.join(map(str, found['seeds']))}. "
        f"{overall['cases']} of {overall['planned']} cases valid under all methods, on {overall['edits']} edits.",
        f"A difference is the method's mean over edits less that of `{found['against']}` on the same cases. It is "
        f"separable where its sign-flip p, after Holm over {tests}, is at most {found['level']:g}.",
        "Where a cell is not, it says how many edits would be needed if mean and spread stay as they are: for a power "
        f"of 80 % at p = {level:.2g}, which is {found['level']:g} over {tests}, and at least {least_edits(level)}, for "
        "with n edits the exact test gives no p below 2^(1 - n). Where the differences of cells of fewer than "
        f"{MANY_EDITS} edits are skewed, their p counts twice.",
    ]
    for row in found["left_out"]:
        parts.append(f"Left out: `{row['label']}` failed on every case ({row['reason']}).")
    gone = [row["label"] for row in found["left_out"]]
    partly = [failure for failure in found["failures"] if failure["method"] not in gone]
    parts += [f"{sentence}." for sentence in failure_sentences(partly, len(found["methods"]))]
    head = ("metric", "method", "mean", "difference", "95 % interval", "p (Holm)", "verdict")
    lines = [[titles[name], method, *_long_cells(cells[ALL, method, name])] for name in shown for method in others]
    parts += ["### All categories", markdown([head, *lines], right=(2, 3, 5))]
    shown_in_full = [cell["difference"] for cell in found["cells"] if cell["category"] == ALL and cell["difference"]]
    parts += withheld_lines(difference["withheld"] for difference in shown_in_full)
    parts += _nothing_told(found, ALL)
    for category, row in found["categories"].items():
        failed = ", ".join(f"{count} {reason}" for reason, count in row["failed"].items())
        least_p = 2.0 ** (1 - row["edits"])
        blind = row["edits"] > 1 and least_p > level
        few = f" With so few edits, no p is below {least_p:.2g} before Holm." if blind else ""
        parts += [
            f"### {category}",
            f"{row['cases']} of {row['planned']} cases, {row['edits']} {'edit' if row['edits'] == 1 else 'edits'}"
            f"{f'; not counted: {failed}' if failed else ''}.{few}",
            markdown(
                [
                    ("method", *labels.values()),
                    *((method, *(_short_cell(cells[category, method, name]) for name in shown)) for method in others),
                ]
            ),
            *_nothing_told(found, category),
        ]
    return "\n\n".join(parts) + "\n"


def write_compare(found: dict, folder: Path) -> list[Path]:
    """Writes `compare.json`, `compare.csv` (a row a cell) and `compare.md` into a folder, and returns their paths.

    Raises `UserError` as `claim_folder` does.
    """
    folder = claim_folder(folder, "folder of tables")
    rows = []
    for cell in found["cells"]:
        difference = cell["difference"] or {"mean": None, "low": None, "high": None, "withheld": ""}
        flat = {
            key: value for key, value in cell.items() if key not in ("difference", "p_holm", "verdict", "edits_needed")
        }
        rows.append(
            flat
            | {"difference": difference["mean"], "low": difference["low"], "high": difference["high"]}
            | {"withheld": difference["withheld"]}
            | {"p_holm": cell["p_holm"], "verdict": cell["verdict"], "edits_needed": cell["edits_needed"]}
        )
    write_json(folder / "compare.json", found)
    table = pd.DataFrame(rows).astype({"edits_needed": "Int64"})
    write_csv(table, folder / "compare.csv")
    write_text(folder / "compare.md", compare_table(found))
    return [folder / f"compare.{kind}" for kind in ("json", "csv", "md")]


def _nothing_told(found: dict, category: str) -> list[str]:
    """Returns a sentence where no difference in a category can be told: which is nearest, and how many edits it
    needs."""
    cells = [cell for cell in found["cells"] if cell["category"] == category and cell["difference"]]
    if not cells or any(cell["verdict"] not in UNTOLD for cell in cells):
        return []
    labels = {score["name"]: score["label"] for score in found["metrics"]}
    nearest = min(cells, key=lambda cell: cell["edits_needed"] or math.inf)
    return [
        f"Nothing can be told from {nearest['edits']} {'edit' if nearest['edits'] == 1 else 'edits'}. The nearest is "
        f"{nearest['method']} on {labels[nearest['metric']]}, which would need {_needed(nearest)}."
    ]


def _needed(cell: dict) -> str:
    """Returns how many edits a cell would need: of a single edit, whose spread is not known, those of the exact
    test."""
    at_least = cell["verdict"] == ONE_EDIT
    return f"at least {cell['edits_needed']} edits" if at_least else edits_words(cell["edits_needed"])


def _direction(better: str) -> str:
    return "no direction" if better == "neither" else f"{better} is better"


def _long_cells(cell: dict) -> list[str]:
    difference = cell["difference"]
    if difference is None:
        return ["-", "-", "-", "-", cell["verdict"]]
    mean, low, high = difference["mean"], difference["low"], difference["high"]
    needed = f"; {_needed(cell)}" if cell["verdict"] in UNTOLD else ""
    dropped = f"; undefined on {cell['dropped']} cases" if cell["dropped"] else ""
    return [
        f"{cell['mean']:.4f}",
        f"{mean:+.4f}",
        difference["withheld"] or f"[{low:+.4f}, {high:+.4f}]",
        "-" if cell["p_holm"] is None else f"{cell['p_holm']:.4f}",
        cell["verdict"] + needed + dropped,
    ]


def _short_cell(cell: dict) -> str:
    if cell["difference"] is None:
        return cell["verdict"]
    dropped = f" ({cell['dropped']} undefined)" if cell["dropped"] else ""
    needed = f" ({_needed(cell)})" if cell["verdict"] in UNTOLD else ""
    return f"{cell['difference']['mean']:+.4f} {cell['verdict']}{needed}{dropped}"
