"""As many threads as there are free cores: threads that wait for a busy core make everything wait for them."""

from __future__ import annotations

import os
from pathlib import Path

import psutil
import torch

LOOK_SECONDS = 0.25
MOST = torch.get_num_threads()  # torch's own choice: the machine's cores, each once
CGROUP_LIMIT = Path("/sys/fs/cgroup/cpu.max")


def fit_threads() -> int:
    """Sets torch's threads to the cores that this process may use and nobody else is using; returns how many.

    Two threads beside one busy process on two cores run slower than one (`docs/performance.md`). Where the user has
    set OMP_NUM_THREADS, that stays.
    """
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(count_free_cores())
    return torch.get_num_threads()


def count_free_cores() -> int:
    """Cores of this process's affinity that are idle for most of a quarter of a second, within the limit of its
    control group; at least 1."""
    process = psutil.Process()
    allowed = process.cpu_affinity() if hasattr(process, "cpu_affinity") else range(psutil.cpu_count() or 1)
    busy = psutil.cpu_percent(interval=LOOK_SECONDS, percpu=True)
    free = sum(busy[core] < 50 for core in allowed if core < len(busy))
    return max(1, min(free, MOST, _group_limit()))


def _group_limit() -> int:
    """Cores that a container may use; `MOST` where nothing limits them."""
    try:
        quota, period = CGROUP_LIMIT.read_text().split()
        return int(quota) // int(period)
    except (OSError, ValueError):  # no control groups, or "max"
        return MOST
