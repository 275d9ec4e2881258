"""Groups of cases on a Ray cluster: an engine stays loaded on each GPU, or each CPU, and groups are streamed to it."""

from __future__ import annotations

import os
import platform
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import torch

from riebench.backbones.table import Backbone
from riebench.core.errors import UserError
from riebench.core.ray_cluster import ray_cluster
from riebench.core.versions import installed_sources
from riebench.metrics.versions import judge_version
from riebench.runs.engine import Engine, open_engine
from riebench.runs.plan import Task
from riebench.runs.store import Batch

TRIES = 3  # workers that one group of cases may cost


@dataclass(frozen=True)
class Job:
    """A group of cases to be worked on, and how many workers it has cost."""

    group: Sequence[Task]
    lost: int = 0

    def again(self, error: Exception) -> Job:
        """Returns the job after one more worker. Raises `UserError` where that was the last it may cost."""
        if self.lost + 1 == TRIES:
            raise UserError(
                f"{TRIES} workers died over the cases from edit {self.group[0].edit.id!r} on",
                remedy="look at Ray's logs; where memory ran out, use a smaller --batch-size or fewer workers",
            ) from error
        return Job(self.group, self.lost + 1)


class Worker:
    """An engine that stays loaded, in a process of its own."""

    _engine: Engine

    def load(
        self, backbone: Backbone, device: str, options: dict, versions: tuple[str, str], paths: Sequence[str]
    ) -> list[Batch]:
        """Opens the engine; makes nothing yet. Not in `__init__`: of an error there Ray keeps the text alone.

        versions: of code and scoring. paths: where modules of one's own are looked for, after those that are installed.
        Raises `UserError` where the versions here are others, and where something is missing.
        """
        sys.path += [path for path in paths if path not in sys.path]
        family, setup = backbone.judges, options["setup"]
        scoring = judge_version(setup.metric_names(family), family, keep_marks=setup.keeps_marks)
        if versions != (installed_sources(), scoring):
            raise UserError(
                f"the code in {Path(__file__).parents[1]} on {platform.node()}, or its metrics, are not those that the "
                "run was planned with",
                remedy="install the same versions everywhere, and start where no other copy lies",
            )
        if device == "cpu":
            torch.set_num_threads(1)
        self._engine = open_engine(backbone, device, **options).load()
        return []

    def work(self, tasks: Sequence[Task], scoring: str) -> list[Batch]:
        """Returns what `Engine.work` yields."""
        return list(self._engine.work([tasks], scoring))


def work_on_cluster(
    groups: Iterable[Sequence[Task]],
    scoring: str,
    backbone: Backbone,
    device: str,
    options: dict,
    address: str | None = None,
) -> Iterator[Batch]:
    """Yields what `Engine.work` makes of the groups, which are taken from the iterable as workers come free, in the
    order in which it is made.

    options: of `open_engine`. address: of a running cluster, or "auto"; None starts one on the free cores and the GPUs
    of this machine. A cluster that the caller is connected to already is used, and left connected. Each worker has one
    GPU where `device` is "cuda", else one CPU; at most one is started for each group. A group whose worker dies is
    given to another. Raises `UserError` where Ray, the cluster or a GPU is missing, and where one group has cost three
    workers.
    """
    groups = iter(groups)
    first = next(groups, None)
    if first is None:
        return
    with ray_cluster(address, device) as (ray, slots, resources):
        hire = ray.remote(**resources)(Worker).remote
        words = backbone, device, options, (installed_sources(), scoring), [os.path.abspath(path) for path in sys.path]
        yield from _stream(ray, chain([first], groups), scoring, slots, hire, words)


def _stream(
    ray, groups: Iterator[Sequence[Task]], scoring: str, slots: int, hire: Callable, words: tuple
) -> Iterator[Batch]:
    """Yields the batches of the groups. words: of `Worker.load`. A group waits until a worker is loaded, and is bound
    to none before: where others use the cluster too, not every worker finds a place at once."""
    waiting: deque[Job] = deque()
    loading: dict = {}  # call -> worker
    busy: dict = {}  # call -> (worker, job)
    idle: list = []
    deaths = ray.exceptions.RayActorError, ray.exceptions.OutOfMemoryError, ray.exceptions.ObjectLostError
    try:
        while True:
            while len(waiting) + len(busy) < slots and (group := next(groups, None)):
                waiting.append(Job(group))
            while waiting and idle:
                worker, job = idle.pop(), waiting.popleft()
                busy[worker.work.remote(job.group, scoring)] = worker, job
            for _ in range(len(waiting) - len(loading)):
                worker = hire()
                loading[worker.load.remote(*words)] = worker
            if not waiting and not busy:
                return
            (call,), _ = ray.wait([*busy, *loading], num_returns=1)
            worker, job = busy.pop(call) if call in busy else (loading.pop(call), None)
            try:
                batches = ray.get(call)
            except ray.exceptions.RayTaskError as error:
                raise error.cause from error
            except deaths as error:
                ray.kill(worker)
                if job is None and waiting:  # it died while it loaded
                    job = waiting.popleft()
                if job is not None:
                    waiting.appendleft(job.again(error))
            else:
                idle.append(worker)
                yield from batches
    finally:
        for worker in (*idle, *loading.values(), *(worker for worker, _ in busy.values())):
            ray.kill(worker)
