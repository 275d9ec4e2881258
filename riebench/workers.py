"""Groups of cases on one machine: one engine on a GPU, or one on each of a few cores, which share their weights.

A small U-Net does not fill two cores with one batch: two engines of one thread each make half as many images again as
one engine of two threads (`docs/performance.md`). Engines are threads of this process, not processes: they start at
once, take methods of any kind, and end with it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from queue import SimpleQueue

import torch

from riebench.backbones import Backbone
from riebench.engine import Engine, open_engine
from riebench.plan import Task
from riebench.store import Batch
from riebench.threads import fit_threads

MOST_ENGINES = 4  # more would wait for the interpreter's lock


def work_here(
    groups: Iterable[Sequence[Task]], judges: str, backbone: Backbone, device: str, options: dict
) -> Iterator[Batch]:
    """What `Engine.work` makes of the groups, which are taken from the iterable one by one, in the order in which it is
    made. options: of `open_engine`."""
    cores = fit_threads() if device == "cpu" else 1
    engine = open_engine(backbone, device, **options)
    engines = min(cores, MOST_ENGINES)
    if engines == 1:
        for group in groups:
            yield from engine.work(group, judges)
        return
    torch.set_num_threads(max(1, cores // engines))
    idle: SimpleQueue[Engine] = SimpleQueue()
    for each in (engine, *(engine.twin() for _ in range(engines - 1))):
        idle.put(each)

    def work(group: Sequence[Task]) -> list[Batch]:
        mine = idle.get()
        try:
            return list(mine.work(group, judges))
        finally:
            idle.put(mine)

    busy: set[Future] = set()
    with ThreadPoolExecutor(engines, "riebench-engine") as pool:
        try:
            for group in groups:
                busy.add(pool.submit(work, group))
                if len(busy) == engines:
                    done, busy = wait(busy, return_when=FIRST_COMPLETED)
                    for future in done:
                        yield from future.result()
            for future in busy:
                yield from future.result()
        finally:
            pool.shutdown(cancel_futures=True)
