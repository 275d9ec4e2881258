"""Groups of cases on one machine: one engine on a GPU, or one on each of a few cores, which share their weights.

A small U-Net does not fill two cores with one batch: two engines of one thread each make half as many images again as
one engine of two threads (`docs/performance.md`). Engines are threads of this process, not processes: they start at
once, take methods of any kind, and end with it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import nullcontext
from queue import SimpleQueue

from riebench.backbones import Backbone
from riebench.engine import Engine, open_engine
from riebench.plan import Task
from riebench.store import Batch
from riebench.threads import threads, usable_cores

MOST_ENGINES = 4  # more would wait for the interpreter's lock


def work_here(
    groups: Iterable[Sequence[Task]], judges: str, backbone: Backbone, device: str, options: dict
) -> Iterator[Batch]:
    """What `Engine.work` makes of the groups, which are taken from the iterable one by one, in the order in which it is
    made. options: of `open_engine`."""
    cores = usable_cores() if device == "cpu" else 1
    engines = 1 if options.get("compiled") else min(cores, MOST_ENGINES)
    with threads(max(1, cores // engines)) if device == "cpu" else nullcontext():
        engine = open_engine(backbone, device, **options)
        if engines > 1:
            yield from _share([engine, *(engine.twin() for _ in range(engines - 1))], groups, judges)
        else:
            for group in groups:
                yield from engine.work(group, judges)


def _share(engines: Sequence[Engine], groups: Iterable[Sequence[Task]], judges: str) -> Iterator[Batch]:
    """The groups' batches, each group made by the engine that is free first."""
    idle: SimpleQueue[Engine] = SimpleQueue()
    for engine in engines:
        idle.put(engine)

    def work(group: Sequence[Task]) -> list[Batch]:
        mine = idle.get()
        try:
            return list(mine.work(group, judges))
        finally:
            idle.put(mine)

    busy: set[Future] = set()
    with ThreadPoolExecutor(len(engines), "riebench-engine") as pool:
        try:
            for group in groups:
                busy.add(pool.submit(work, group))
                if len(busy) == len(engines):
                    done, busy = wait(busy, return_when=FIRST_COMPLETED)
                    for future in done:
                        yield from future.result()
            for future in busy:
                yield from future.result()
        finally:
            pool.shutdown(cancel_futures=True)
