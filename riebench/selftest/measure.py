"""Seconds and memory, of a device that may still be at work when a call returns."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any

import torch

MISSING = object()


def finished(device: torch.device) -> float:
    """Returns the time, in seconds, once the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def seconds_of(work: Callable[[], Any], device: torch.device, repeats: int) -> float:
    """Returns the median time of calls, after one that does not count."""
    work()
    taken = []
    for _ in range(repeats):
        started = finished(device)
        work()
        taken.append(finished(device) - started)
    return median(taken)


class Peak:
    """The most memory that torch had on a GPU while open, a context manager; `gigabytes` is None on a CPU."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.gigabytes = device, None

    def __enter__(self) -> Peak:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        return self

    def __exit__(self, *exc) -> None:
        if self.device.type == "cuda":
            self.gigabytes = torch.cuda.max_memory_allocated(self.device) / 1e9


class Clock:
    """Shares out time over parts: what a part does inside another one counts for itself alone."""

    def __init__(self, now: Callable[[], float]) -> None:
        """now: what tells the time."""
        self._now = now
        self.seconds: dict[str, float] = {}
        self._open: list[str] = []
        self._since = 0.0

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Counts the time in here for a part."""
        self._turn()
        self._open.append(name)
        try:
            yield
        finally:
            self._turn()
            self._open.pop()

    def timed(self, name: str, work: Callable) -> Callable:
        """Returns a function whose calls count for a part."""

        def called(*args: Any, **kwargs: Any) -> Any:
            with self.part(name):
                return work(*args, **kwargs)

        return called

    def timed_steps(self, name: str, work: Callable[..., Iterator]) -> Callable[..., Iterator]:
        """Returns a generator function, each step of whose generators counts for a part."""

        def called(*args: Any, **kwargs: Any) -> Iterator:
            steps = iter(work(*args, **kwargs))
            while True:
                with self.part(name):
                    found = next(steps, MISSING)
                if found is MISSING:
                    return
                yield found

        return called

    def _turn(self) -> None:
        """Gives the time since the last turn to the part that is open."""
        now = self._now()
        if self._open:
            name = self._open[-1]
            self.seconds[name] = self.seconds.get(name, 0.0) + now - self._since
        self._since = now


def sizes_that_fit(sizes: Iterable[int], work: Callable[[int], Any]) -> tuple[dict[int, Any], str]:
    """Returns size -> what the work returns for it, smallest first, and in words that a size does not fit into memory;
    "" where all do. Raises what the work does of the smallest, and whatever else goes wrong."""
    found: dict[int, Any] = {}
    for size in sorted(sizes):
        try:
            found[size] = work(size)
        except torch.OutOfMemoryError:
            if not found:
                raise
            torch.cuda.empty_cache()
            return found, f"{size} rows do not fit into memory"
    return found, ""


@contextmanager
def in_place(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Lets an object have another attribute in here, and its own again afterwards."""
    own = vars(owner).get(name, MISSING)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if own is MISSING:
            delattr(owner, name)
        else:
            setattr(owner, name, own)
