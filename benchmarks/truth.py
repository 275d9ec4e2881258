"""Does the benchmark find the planted block? Runs every backbone whose truth is known and writes docs/truth.md.

Each is run with methods on every subset of the blocks, at the quickstart's size, and each verdict is held against the
block that the weights' own structure lets the words enter in (`riebench/backbones/worlds.py`). Stopped, it goes on.

    python benchmarks/truth.py --runs runs/truth --out docs/truth.md
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from riebench.analysis import dominance_over, load_summary
from riebench.analysis.across import SOURCE
from riebench.analysis.truth import OUTCOMES, against_truth, count_outcomes
from riebench.backbones.table import BACKBONES, Backbone
from riebench.backbones.worlds import CHANGED
from riebench.core.files import write_text
from riebench.core.text_tables import markdown
from riebench.runs.config import build_config
from riebench.runs.run import run

METHODS = [
    "noop",
    {"name": "sae", "k": 32},
    {"name": "sae", "label": "sae-equal-norm", "k": 32, "budget": "norm"},
    "dense",
    "prompt-injection",
]
ON_SUBSETS = ["sae", "sae-equal-norm", "dense", "prompt-injection"]
VALUES = {"oracle_success": "the oracle's success", "clip_text_edited": "gain in CLIP"}
SHOWN = "sae"


def settings(edits: int, seeds: Sequence[int]) -> dict:
    """What every backbone is run with."""
    return {"edits_per_category": edits, "seeds": list(seeds), "methods": METHODS, "subsets_of": ON_SUBSETS}


def judge(backbones: Sequence[Backbone], summaries: Sequence[tuple[str, dict]]) -> pd.DataFrame:
    """The verdicts of runs beside the truth of their backbones (`against_truth`), of `VALUES` alone."""
    planted = {one.name: {name: one.planted_block(name) for name in CHANGED} for one in backbones}
    judged = against_truth(dominance_over(summaries), planted)
    return judged[judged["value"].isin(VALUES)]


def text_of(judged: pd.DataFrame, edits: int, seeds: Sequence[int]) -> str:
    """The document, as Markdown."""
    counts = count_outcomes(judged)
    of_counts = [["backbone", "method", "by", *OUTCOMES]]
    of_counts += [
        [
            row["backbone"],
            row["method"],
            VALUES[row["value"]],
            *(f"{row[name]} of {row['categories']}" for name in OUTCOMES),
        ]
        for _, row in counts.iterrows()
    ]
    of_shown = [["backbone", "by", "category", "planted", "verdict", "lead x100"]]
    of_shown += [
        [
            row["backbone"],
            VALUES[row["value"]],
            row["category"],
            row["planted"],
            row["verdict"],
            f"{100 * row['lead']:+.1f}",
        ]
        for _, row in judged[judged["method"] == SHOWN].sort_values(["value", *SOURCE], kind="stable").iterrows()
    ]
    lines = [
        "# Does the benchmark find what was planted?",
        "",
        "In tinyworld's generators it is known in which block the words of each category enter, as the weights' own",
        "structure leaves no other way (`docs/tinyworld.md`). Here every verdict is held against that: recovered where",
        f"it names the planted block, false where it names another. {edits} edits a category, {len(seeds)} seeds.",
        "Made by `python benchmarks/truth.py`.",
        "",
        markdown(of_counts),
        "",
        f"`{SHOWN}` category by category; the lead is the planted block's Shapley value less that of the next:",
        "",
        markdown(of_shown),
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, required=True, help="folder of the runs, one a backbone")
    parser.add_argument("--out", type=Path, required=True, help="the document to write")
    parser.add_argument("--edits", type=int, default=12, help="edits a category")
    parser.add_argument("--seeds", type=int, nargs="+", default=[42, 43, 44], help="seeds of each edit")
    words = parser.parse_args()
    backbones = [one for one in map(BACKBONES.get, BACKBONES.names()) if one.roles]
    summaries = []
    for backbone in backbones:
        config = build_config({"backbone": backbone.name, **settings(words.edits, words.seeds)}, "benchmarks/truth.py")
        done = run(config, words.runs / backbone.name)
        summaries.append((backbone.name, load_summary(done.summary)))
    text = text_of(judge(backbones, summaries), words.edits, words.seeds)
    write_text(words.out, text)
    print(text)


if __name__ == "__main__":
    main()
