"""From a table of scores to effects with intervals. pandas and numpy only."""

from riebench.analysis.frames import read_scores, write_scores
from riebench.analysis.summary import block_table, summarise

__all__ = ["block_table", "read_scores", "summarise", "write_scores"]
