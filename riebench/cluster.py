"""Groups of cases on a Ray cluster: an engine stays loaded on each GPU, or each CPU, and groups are streamed to it."""

from __future__ import annotations

import importlib
import os
import platform
import signal
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import ModuleType

import torch

from riebench.backbones import Backbone
from riebench.engine import Engine, open_engine
from riebench.errors import UserError
from riebench.metrics import METRICS
from riebench.plan import Task
from riebench.store import Batch
from riebench.threads import count_free_cores
from riebench.versions import code_version, judge_version

TRIES = 3  # workers that one group of cases may cost
ANSWER_SECONDS = 5
#: What Ray reads of the environment, where the user has not set it.
RAY_SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # under `uv run` Ray would upload the working directory
}


class Worker:
    """An engine that stays loaded, in a process of its own."""

    _engine: Engine

    def load(self, backbone: Backbone, device: str, options: dict, versions: tuple[str, str]) -> list[Batch]:
        """Opens the engine, and makes nothing yet. Not done on creation: of an error there Ray keeps but the text.

        Raises `UserError` where something is missing, or the versions of code and judges are not those here.
        """
        if versions != (code_version(), judge_version(METRICS.names(), backbone.judges)):
            raise UserError(
                f"the code or the metrics on {platform.node()} are not those of the machine that runs the benchmark",
                remedy="install the same versions of riebench, torch and plug-ins everywhere",
            )
        if device == "cpu":
            torch.set_num_threads(1)
        self._engine = open_engine(backbone, device, **options)
        return []

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
    """What `Engine.work` makes of the groups, which are taken from the iterable one by one, in the order in which it is
    made.

    options: of `open_engine`. address: of a running cluster, or "auto"; None starts one on the free cores and the GPUs
    of this machine; where the caller has connected to one, it is that. Each worker has one GPU where `device` is
    "cuda", else one CPU. A group whose worker dies is given to another. Raises `UserError` where Ray, the cluster or a
    GPU is missing, and where one group has cost three workers.
    """
    groups = iter(groups)
    first = next(groups, None)
    if first is None:
        return
    ray = _import_ray()
    with _connected(ray, address):
        kind = "GPU" if device == "cuda" else "CPU"
        slots = int(ray.cluster_resources().get(kind, 0))
        if slots < 1:
            raise UserError(f"the Ray cluster has no {kind}", remedy="start it with some, or use another --device")
        hire = ray.remote(num_cpus=int(kind == "CPU"), num_gpus=int(kind == "GPU"))(Worker).remote
        words = backbone, device, options, (code_version(), judges)
        crew = 
