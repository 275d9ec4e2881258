"""A table of scores becomes effects with intervals. Nothing here imports torch, and pandas only when it is used."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from riebench.analysis.across import dominance_over, verdict_table
    from riebench.analysis.agreement import agreement_of_run, agreement_tables
    from riebench.analysis.coalitions import needed_subsets
    from riebench.analysis.frames import read_scores, write_csv, write_scores
    from riebench.analysis.run import Run
    from riebench.analysis.summary import block_table, load_summary, summarise

__all__ = [
    "Run",
    "agreement_of_run",
    "agreement_tables",
    "block_table",
    "dominance_over",
    "load_summary",
    "needed_subsets",
    "read_scores",
    "summarise",
    "verdict_table",
    "write_csv",
    "write_scores",
]

_ROOMS = {
    "Run": "run",
    "agreement_of_run": "agreement",
    "agreement_tables": "agreement",
    "block_table": "summary",
    "dominance_over": "across",
    "load_summary": "summary",
    "needed_subsets": "coalitions",
    "read_scores": "frames",
    "summarise": "summary",
    "verdict_table": "across",
    "write_csv": "frames",
    "write_scores": "frames",
}


def __getattr__(name: str) -> object:
    if name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_ROOMS[name]}"), name)
