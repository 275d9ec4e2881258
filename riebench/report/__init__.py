"""One offline page from a run's tables and images."""

from riebench.report.page import write_report

__all__ = ["write_report"]
