"""Memory: how much of it there is for this process, in a container too, and what is said where it runs out.

Imports torch only where a device is asked about.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from riebench.core.errors import UserError
from riebench.core.groups import control_groups

if TYPE_CHECKING:
    import torch

#: What errors say where memory ran out: of CUDA, cuDNN, cuBLAS and HIP as torch passes them on, where they have no
#: class of their own, and of an allocation on the CPU.
WORDS = (
    "out of memory",
    "hiperroroutofmemory",
    "cudaerrormemoryallocation",
    "cudnn_status_alloc_failed",
    "cudnn_status_internal_error_host_allocation_failed",
    "cudnn_status_internal_error_device_allocation_failed",
    "cublas_status_alloc_failed",
    "cublaslt_status_alloc_failed",
    "cusolver_status_alloc_failed",
    "hipblas_status_alloc_failed",
    "miopenstatusallocfailed",
    "unable to find an engine to execute this computation",  # cuDNN found no room for the workspace of any
    "can't allocate memory",
    "cannot allocate memory",
)


@dataclass(frozen=True)
class Memory:
    """Memory in bytes: all that this process may have, and what of it is free."""

    total: int
    free: int


def host_memory() -> Memory:
    """Returns the machine's memory, or what the control groups around this process leave of it.

    A group has free what its limit is above its use; files that it read and nobody uses (`inactive_file`) do not count
    as used, for the kernel gives them up before it refuses anything.
    """
    machine = psutil.virtual_memory()
    total, free = int(machine.total), int(machine.available)
    for group in control_groups("memory"):
        for limit, used, reclaimable in (
            ("memory.max", "memory.current", "inactive_file"),  # version 2
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),  # version 1
        ):
            most, now = _number(group / limit), _number(group / used)
            if most is not None and now is not None:
                total = min(total, most)
                free = min(free, most - now + min(now, _line_of(group / "memory.stat", reclaimable)))
    return Memory(total, max(0, min(free, total)))


def free_memory(device: torch.device | str = "cpu") -> int:
    """Returns the bytes that may still be allocated on a device; what torch holds of a GPU and has no tensor in is
    free."""
    import torch

    device = torch.device(device)
    if device.type != "cuda":
        return host_memory().free
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def is_out_of_memory(error: BaseException) -> bool:
    """Returns whether memory ran out, on a device or on the CPU. Some errors have no class that says so: they are told
    by their words (`WORDS`)."""
    import torch

    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    if isinstance(error, UserError):
        return False
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    words = str(error).lower()
    return any(word in words for word in WORDS)


@contextmanager
def room_for(
    what: str,
    device: torch.device | str,
    gigabytes: float = 0.0,
    remedy: str = "free some of it, or use another device",
) -> Iterator[None]:
    """Says in one line that something does not fit where memory runs out in the block. gigabytes: what it takes, 0
    where that is not known."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        takes = f": it takes about {gigabytes:.1f} GB" if gigabytes else ""
        raise UserError(f"{what} does not fit into the memory of {device}{takes}", remedy=remedy) from error


def _number(path: Path) -> int | None:
    """Returns the whole number that a file holds; None where there is no such file, or it says "max"."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def _line_of(path: Path, name: str) -> int:
    """Returns the number behind a name, out of lines "name number"; 0 where there is none."""
    try:
        numbers = dict(line.split(maxsplit=1) for line in path.read_text().splitlines())
        return int(numbers.get(name, 0))
    except (OSError, ValueError):
        return 0
