"""Work spread over a Ray cluster: a resident backbone on each GPU, or each CPU, and groups of cases streamed to it."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator, Sequence

import torch

from riebench.backbones import Backbone
from riebench.engine import open_engine
from riebench.errors import UserError
from riebench.plan import Task
from riebench.store import Batch

TRIES = 3  # workers that one group of cases may cost


class Worker:
    """One backbone that stays loaded, in a process of its own."""

    def __init__(self, backbone: Backbone, device: str, options: dict) -> None:
        if device == "cpu":
            torch.set_num_threads(1)
        self._engine = open_engine(backbone, device, **options)

    def work(self, tasks: Sequence[Task], judges: str) -> list[Batch]:
        """As `Engine.work`."""
        return list(self._engine.work(tasks, judges))


def work_on_cluster(
    groups: Iterable[Sequence[Task]],
    judges: str,
    backbone: Backbone,
    device: str,
    options: dict,
    address: str | None = None,
) -> Iterator[Batch]:
    """What `Engine.work` makes of the groups, in the order in which they are finished.

    options: of `open_engine`. address: of a running cluster, or "auto"; None starts one on this machine. Each worker
    has one GPU where `device` is "cuda", else one CPU. A group whose worker dies is given to a new one. Raises
    `UserError` where Ray or a GPU is missing, and where one group has cost three workers.
    """
    try:
        ray = importlib.import_module("ray")
    except ImportError as error:
        raise UserError("Ray is not installed", remedy='pip install "riebench[ray]"') from error
    started_here = not ray.is_initialized()
    if started_here:
        try:
            ray.init(address=address, log_to_driver=False, include_dashboard=False, logging_level="ERROR")
        except (ConnectionError, ValueError) as error:
            raise UserError(
                f"no Ray cluster answers at {address!r}: {error}", remedy="start one, or leave --address out"
            ) from error
    try:
        yield from _stream(ray, groups, judges, (backbone, device, options))
    finally:
        if started_here:
            ray.shutdown()


def _stream(ray, groups: Iterable[Sequence[Task]], judges: str, hiring: tuple[Backbone, str, dict]) -> Iterator[Batch]:
    kind = "GPU" if hiring[1] == "cuda" else "CPU"
    slots = int(ray.cluster_resources().get(kind, 0))
    if slots < 1:
        raise UserError(f"the Ray cluster has no {kind}", remedy="start it with some, or use another --device")
    actor = ray.remote(num_cpus=1, num_gpus=int(kind == "GPU"))(Worker)
    new = ((group, 1) for group in groups)
    again: list[tuple[Sequence[Task], int]] = []
    idle = [actor.remote(*hiring) for _ in range(slots)]
    busy: dict = {}
    while True:
        while idle and (item := again.pop() if again else next(new, None)):
            worker = idle.pop()
            busy[worker.work.remote(item[0], judges)] = worker, *item
        if not busy:
            return
        (finished,), _ = ray.wait(list(busy), num_returns=1)
        worker, group, tries = busy.pop(finished)
        try:
            batches = ray.get(finished)
        except ray.exceptions.RayActorError as error:
            if tries == TRIES:
                raise UserError(
                    f"{TRIES} workers died over the cases from {group[0].edit.id!r} on: {error}",
                    remedy="look at Ray's logs; if memory ran out, use a smaller --batch-size",
                ) from error
            again.append((group, tries + 1))
            idle.append(actor.remote(*hiring))
            continue
        except ray.exceptions.RayTaskError as error:
            raise error.cause from error
        idle.append(worker)
        yield from batches
