"""A process that dies while it writes, and a fork of this process to die in."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path

import torch


def die_in_shard_file(number: int) -> None:
    """From now on this process is killed (kill -9) when half of its so-many-th .safetensors file is written."""
    real, writes = Path.write_bytes, 0

    def half_then_killed(path: Path, data: bytes) -> int:
        nonlocal writes
        writes += path.suffix == ".safetensors"
        if writes == number:
            real(path, data[: len(data) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        return real(path, data)

    Path.write_bytes = half_then_killed


def exit_code_of_fork(work: Callable[[], object]) -> int:
    """Runs a function in a fork of this process, with one thread, and returns its exit code, negative for a signal. A
    fork has nothing to import; with several threads what they share could hang in it."""

    def with_one_thread() -> None:
        torch.set_num_threads(1)
        work()

    fork = get_context("fork").Process(target=with_one_thread)
    fork.start()
    fork.join()
    return fork.exitcode
