"""What a result is scored by. Metrics are found by name, share their networks, and return one float a row.

Imports no torch.
"""

from riebench.metrics.base import Metric, ScoreBatch, score_batch
from riebench.metrics.build import describe, networks, refuse_size, scorers
from riebench.metrics.table import (
    ANY_CLIP,
    DEFAULT,
    METRICS,
    ONLY,
    check_names,
    default_metrics,
    split_name,
)

__all__ = [
    "ANY_CLIP",
    "DEFAULT",
    "METRICS",
    "ONLY",
    "Metric",
    "ScoreBatch",
    "check_names",
    "default_metrics",
    "describe",
    "networks",
    "refuse_size",
    "score_batch",
    "scorers",
    "split_name",
]
