"""Workers on a Ray cluster that stay loaded, to which jobs are streamed; a job whose worker dies goes to another."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from riebench.core.errors import UserError
from riebench.core.ray_cluster import Cluster, Terms

if TYPE_CHECKING:
    import torch

TRIES = 3  # workers that one job may cost


@dataclass(frozen=True)
class Job:
    """Something to be worked on, and how many workers it has cost."""

    name: str
    """What messages call it."""
    words: tuple
    """What `work` is called with."""
    number: int = 0
    """Which of the jobs it is, where their order matters."""
    lost: int = 0

    def again(self, error: Exception) -> Job:
        """Returns the job after one more worker, which is said on stderr. Raises `UserError` where that was the last it
        may cost."""
        return replace(self, lost=count_loss(self.lost, f"over {self.name}", error))


def count_loss(lost: int, what: str, error: Exception) -> int:
    """Returns how many workers something has cost after one more, which is said on stderr. Raises `UserError` where
    that was the last it may cost."""
    if lost + 1 == TRIES:
        raise UserError(
            f"{TRIES} workers died {what}",
            remedy="look at Ray's logs; where memory ran out, use a smaller --batch-size or fewer workers",
        ) from error
    print(f"riebench: a worker died {what}; another one takes it up", file=sys.stderr, flush=True)
    return lost + 1


class Pool:
    """Workers of one class, each in a process of its own, at most as many as there is room for and as there are jobs.
    Use as a context manager: leaving ends them.

    worker: a class with a method `load`, which takes `Terms` and `words` and makes nothing yet, and a method `work`,
    which takes the words of a job. What is to be loaded is not loaded in `__init__`: of an error there Ray keeps the
    text alone. Nodes that join the cluster are used, and so are fewer.
    """

    def __init__(self, cluster: Cluster, worker: type, words: tuple) -> None:
        self.cluster, self._worker = cluster, worker
        self._words = (cluster.terms(), *words)
        self._loading: dict = {}  # call -> worker
        self._busy: dict = {}  # call -> (worker, job)
        self._idle: list = []

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_error: object) -> None:
        for worker in (*self._idle, *self._loading.values(), *(worker for worker, _ in self._busy.values())):
            self.cluster.ray.kill(worker)

    def first(self) -> Any:
        """Returns what `load` of a first worker returns, when that is there; to be asked for before there is work.
        Raises what it raises, and `UserError` where three die."""
        lost = 0
        while True:
            self._hire()
            call = self.cluster.wait(list(self._loading))
            worker = self._loading.pop(call)
            try:
                found = self.cluster.answer(call)
            except self.cluster.deaths as error:
                self.cluster.ray.kill(worker)
                lost = count_loss(lost, "while it loaded", error)
            else:
                self._idle.append(worker)
                return found

    def work(self, jobs: Iterable[Job]) -> Iterator[tuple[Job, Any]]:
        """Yields each job with what `work` makes of it, as it comes. Jobs are taken from the iterable as workers come
        free.

        Raises what a worker raises, and `UserError` where one job has cost three workers, and where no node is left. A
        job waits until a worker is loaded, and is bound to none before: where others use the cluster too, not every
        worker finds a place at once.
        """
        jobs, waiting = iter(jobs), deque[Job]()
        while True:
            slots = max(1, self.cluster.slots())  # where no node is left, the wait below says so
            while len(waiting) + len(self._busy) < slots and (job := next(jobs, None)):
                waiting.append(job)
            while waiting and self._idle:
                worker, job = self._idle.pop(), waiting.popleft()
                self._busy[worker.work.remote(*job.words)] = worker, job
            for _ in range(len(waiting) - len(self._loading)):
                self._hire()
            if not waiting and not self._busy:
                return
            call = self.cluster.wait([*self._loading, *self._busy])  # of those that ended Ray gives the first
            worker, job = self._busy.pop(call) if call in self._busy else (self._loading.pop(call), None)
            try:
                found = self.cluster.answer(call)
            except self.cluster.deaths as error:
                self.cluster.ray.kill(worker)
                if job is None and waiting:  # it died while it loaded
                    job = waiting.popleft()
                if job is not None:
                    waiting.appendleft(job.again(error))
            else:
                self._idle.append(worker)
                if job is not None:
                    yield job, found

    def _hire(self) -> None:
        worker = self.cluster.hire(self._worker)
        self._loading[worker.load.remote(*self._words)] = worker


class Caller:
    """A process that calls functions on its device."""

    def load(self, terms: Terms) -> None:
        """Raises `UserError` as `Terms.settle` does."""
        self._device = terms.settle()

    def work(self, function: bytes) -> Any:
        """Returns what a function returns for the device. It is pickled, since what it names may be found only by the
        paths of the terms."""
        from ray import cloudpickle

        return cloudpickle.loads(function)(self._device)


def call_on_cluster(cluster: Cluster, function: Callable[[torch.device], Any], name: str) -> Any:
    """Returns what a function returns for the device of a worker, in which it is called, in another one where that
    dies. name: what messages call it. Raises `UserError` as `Pool.work` does, and what the function raises."""
    with Pool(cluster, Caller, ()) as pool:
        ((_, found),) = pool.work([Job(name, (cluster.ray.cloudpickle.dumps(function),))])
    return found
