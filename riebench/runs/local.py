"""Groups of cases on one machine: one engine on a GPU, or one on each of a few cores, which share their weights.

A small model does not fill two cores with one batch: two engines of one thread each make a third more images than one
engine of two threads, or twice as many (`docs/performance.md`). Engines are threads of this process, not processes:
they start at once, take methods of any kind, and end with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from itertools import takewhile
from queue import SimpleQueue
from threading import Event

from riebench.backbones.table import Backbone
from riebench.core.threads import threads, usable_cores
from riebench.runs.engine import Engine, open_engine
from riebench.runs.plan import Task
from riebench.runs.store import Batch

MOST_ENGINES = 4  # more would wait for the interpreter's lock


def work_here(
    groups: Iterable[Sequence[Task]],
    scoring: str,
    backbone: Backbone,
    device: str,
    options: dict,
    stop: Callable[[], bool] = lambda: False,
) -> Iterator[Batch]:
    """Yields what `Engine.work` makes of the groups, which are taken from the iterable one by one, in the order in
    which it is made. options: of `open_engine`. stop: where it is true, only the batches in hand are finished."""
    cores = usable_cores() if device == "cpu" else 1
    count = 1 if options.get("compiled") else min(cores, MOST_ENGINES)
    with threads(max(1, cores // count)) if device == "cpu" else nullcontext():
        engine = open_engine(backbone, device, **options).load()
        engines = [engine, *(engine.twin() for _ in range(count - 1))]
        yield from _share(engines, takewhile(lambda _: not stop(), groups), scoring, stop)


def _share(
    engines: Sequence[Engine], groups: Iterator[Sequence[Task]], scoring: str, stop: Callable[[], bool]
) -> Iterator[Batch]:
    """Yields the groups' batches, each group made by the engine that is free first."""
    found: SimpleQueue[Batch | BaseException | Engine] = SimpleQueue()
    ended = Event()

    def work(engine: Engine, some: Iterable[Sequence[Task]]) -> None:
        try:
            for batch in engine.work(some, scoring):
                found.put(batch)
                if stop() or ended.is_set():
                    break
        except BaseException as error:
            found.put(error)
        found.put(engine)

    # one engine takes all groups itself, so that it can plan one beside another
    shares = iter([groups]) if len(engines) == 1 else ([group] for group in groups)
    idle = list(engines)
    with ThreadPoolExecutor(len(engines), "riebench-engine") as pool:
        try:
            while True:
                while idle and (share := next(shares, None)):
                    pool.submit(work, idle.pop(), share)
                if len(idle) == len(engines):
                    return
                match found.get():
                    case Engine() as engine:
                        idle.append(engine)
                    case BaseException() as error:
                        raise error
                    case batch:
                        yield batch
        finally:
            ended.set()
