"""torch gets as many threads as there are free cores: those that wait for a busy core make everything wait."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import torch

from riebench.core.groups import control_groups

LOOK_SECONDS = 0.25


def machine_cores() -> int:
    """Returns how many cores this process may use, each counted once where two threads share one."""
    process = psutil.Process()
    allowed = len(process.cpu_affinity()) if hasattr(process, "cpu_affinity") else psutil.cpu_count() or 1
    return max(1, min(allowed, psutil.cpu_count(logical=False) or allowed))


def usable_cores() -> int:
    """Returns how many cores are ours: OMP_NUM_THREADS where the user has set it, else those that are free."""
    return torch.get_num_threads() if "OMP_NUM_THREADS" in os.environ else count_free_cores()


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Lets torch compute with so many threads in the block, and with as many as before afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def count_free_cores() -> int:
    """Returns how many cores of this process's affinity are idle for most of a quarter of a second, within the limit of
    its control group; at least 1."""
    process = psutil.Process()
    allowed = process.cpu_affinity() if hasattr(process, "cpu_affinity") else range(psutil.cpu_count() or 1)
    busy = psutil.cpu_percent(interval=LOOK_SECONDS, percpu=True)
    free = sum(busy[core] < 50 for core in allowed if core < len(busy))
    return max(1, min(free, machine_cores(), _group_limit()))


def _group_limit() -> int:
    """Returns the cores that a container may use, the least of the limits of its group and of those around it; those of
    the machine where nothing limits them."""
    limits = (_cores_of(group) for group in control_groups("cpu"))
    return min((cores for cores in limits if cores is not None), default=machine_cores())


def _cores_of(group: Path) -> int | None:
    """Returns the whole cores that a control group may use; None where it has no limit."""
    try:
        if (group / "cpu.max").is_file():  # version 2
            quota, period = (group / "cpu.max").read_text().split()
        else:
            quota, period = ((group / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        return int(quota) // int(period) if int(quota) > 0 else None  # -1 is none in version 1
    except (OSError, ValueError):  # no such file, or "max"
        return None
