"""From a table of scores to effects with intervals. pandas and numpy only."""

from riebench.analysis.agreement import agreement_of_run, agreement_tables
from riebench.analysis.frames import read_scores, write_scores
from riebench.analysis.summary import block_table, summarise

__all__ = ["agreement_of_run", "agreement_tables", "block_table", "read_scores", "summarise", "write_scores"]
