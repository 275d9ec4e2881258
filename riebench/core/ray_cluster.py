"""This connects to a Ray cluster, or starts one here, and says what each worker is given. Imports no torch."""

from __future__ import annotations

import importlib
import os
import platform
import signal
import socket
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from math import floor
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from riebench.core.errors import UserError, did_you_mean
from riebench.core.plugins import loaded_plugins
from riebench.core.versions import installed_sources

if TYPE_CHECKING:
    import torch

ENGINES = ("local", "ray")
DEVICES = ("auto", "cpu", "cuda")
ANSWER_SECONDS = 5
#: What Ray is told by the environment, where the user has not set it.
RAY_SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # under `uv run` Ray would upload the working directory
}


@dataclass(frozen=True)
class Terms:
    """Says what a worker has to know before it does anything else. It goes to the worker's process."""

    device: str
    """"cuda" for a worker that Ray gives a GPU, else "cpu"."""
    version: str
    """The digest of the code that the workers are to run (`installed_sources`)."""
    paths: tuple[str, ...]
    """Where modules of one's own are looked for, after those that are installed."""
    plugins: tuple[str, ...] = ()
    """Those of them that register methods or metrics (`riebench.core.plugins`)."""

    def settle(self) -> torch.device:
        """Returns the device that the worker computes on, and gives torch its threads: one for each worker on a CPU;
        beside a GPU the cores of the node, shared out to its GPUs.

        Called in the worker's process, once. Raises `UserError` where the code here is another, and where torch can use
        no GPU.
        """
        import torch

        sys.path += [path for path in self.paths if path not in sys.path]
        for name in self.plugins:
            importlib.import_module(name)
        if self.version != installed_sources():
            raise UserError(
                f"the code in {Path(__file__).parents[2]} on {platform.node()} is not that of this command",
                remedy="install the same versions everywhere, and start where no other copy lies",
            )
        cores = 1
        if self.device == "cuda":
            if not torch.cuda.is_available():
                raise UserError(
                    f"Ray counts a GPU on {platform.node()}, and torch can use none there",
                    remedy="install a torch for its driver there, or use --device cpu",
                )
            cores = max(1, int(_cores_each(_own_node())))
        torch.set_num_threads(cores)
        os.environ["OMP_NUM_THREADS"] = str(cores)  # what `usable_cores` goes by
        return torch.device(self.device)


@dataclass(frozen=True)
class Cluster:
    """A Ray cluster that this process is connected to, for work on one kind of device."""

    ray: ModuleType
    device: str
    """"cuda" where each worker has a GPU, else "cpu"."""
    resources: Mapping[str, float]
    """What Ray keeps free for each worker: `num_cpus` and `num_gpus`."""

    def slots(self) -> int:
        """Returns how many workers have room on the nodes that are alive now."""
        kind = "GPU" if self.device == "cuda" else "CPU"
        return sum(int(node.get(kind, 0)) for node in _nodes(self.ray))

    def terms(self) -> Terms:
        """Returns what each worker is told first."""
        paths = tuple(os.path.abspath(path) for path in sys.path)
        return Terms(self.device, installed_sources(), paths, loaded_plugins())

    def hire(self, worker: type, **options: Any) -> Any:
        """Returns the handle of a new worker, an instance of the class in a process of its own, which may have to wait
        for room. options: of `ray.remote`."""
        return self.ray.remote(**self.resources, **options)(worker).remote()

    def wait(self, calls: Sequence) -> Any:
        """Returns the first of the calls that has ended. Raises `UserError` where no node is left that could do the
        work."""
        while True:
            ended, _ = self.ray.wait(list(calls), num_returns=1, timeout=ANSWER_SECONDS)
            if ended:
                return ended[0]
            if self.slots() < 1:
                raise UserError(
                    f"no node of the Ray cluster that is left has a {'GPU' if self.device == 'cuda' else 'CPU'}",
                    remedy="start some again; the same command goes on from what is there",
                )

    def answer(self, call: Any) -> Any:
        """Returns what an ended call of a worker returns. Raises what the worker raised, one of `deaths` where it died,
        and `UserError` where riebench cannot be imported on its node."""
        try:
            return self.ray.get(call)
        except self.ray.exceptions.RayTaskError as error:
            raise error.cause from error
        except self.ray.exceptions.RayActorError as error:
            if "failed to import on the worker" in str(error):
                raise UserError(
                    f"a node of the Ray cluster lacks what the work needs: {str(error).strip().splitlines()[-1]}",
                    remedy="install riebench, with the same packages, on every node",
                ) from error
            raise

    @property
    def deaths(self) -> tuple[type[Exception], ...]:
        """The errors of a call whose worker died, or whose result was lost with its node."""
        errors = self.ray.exceptions
        return errors.RayActorError, errors.NodeDiedError, errors.OutOfMemoryError, errors.ObjectLostError


def cluster_for(engine: str, device: str, address: str | None = None) -> AbstractContextManager[Cluster | None]:
    """Returns a context manager of the cluster that an engine works on: None for "local", `ray_cluster` for "ray".

    Raises `UserError` for another engine.
    """
    if engine not in ENGINES:
        raise UserError(f"unknown engine {engine!r}{did_you_mean(engine, ENGINES)}", remedy="use local or ray")
    return nullcontext() if engine == "local" else ray_cluster(address, device)


@contextmanager
def ray_cluster(address: str | None, device: str) -> Iterator[Cluster]:
    """Yields a Ray cluster, and says on stderr who does the work.

    address: of a running cluster, or "auto"; None starts one on the free cores and the GPUs of this machine. A cluster
    that the caller is connected to already is used, and left connected. device: "cpu" has a worker for each CPU, "cuda"
    one for each GPU, whatever this machine has; "auto" takes the GPUs where any node has one. Beside its GPU a worker
    has the node's CPUs divided by its GPUs, in the reservation those of the node that has the fewest. Nodes without a
    GPU take no part then: a run is made by one kind of device, in one precision. Raises `UserError` where Ray, the
    cluster, or a node that could do the work is missing.
    """
    if device not in DEVICES:
        raise UserError(f"unknown device {device!r}{did_you_mean(device, DEVICES)}", remedy=f"use {', '.join(DEVICES)}")
    ray = _import_ray(address)
    connected = ray.is_initialized()
    if not connected:
        _connect(ray, address)
    try:
        nodes = _nodes(ray)
        cluster = Cluster(ray, *_share(nodes, device))
        print(f"riebench: Ray: {_told(cluster, nodes)}", file=sys.stderr, flush=True)
        yield cluster
    finally:
        if not connected:
            ray.shutdown()


def _share(nodes: Sequence[Mapping[str, float]], device: str) -> tuple[str, dict[str, float]]:
    """Returns (the device that workers compute on, what Ray keeps free for each). nodes: resource -> how much."""
    with_gpu = [node for node in nodes if node.get("GPU", 0) >= 1]
    if device == "auto":
        device = "cuda" if with_gpu else "cpu"
    able = with_gpu if device == "cuda" else [node for node in nodes if node.get("CPU", 0) >= 1]
    if not able:
        kind = "GPU" if device == "cuda" else "CPU"
        raise UserError(
            f"the Ray cluster has no {kind} ({_counted(len(nodes), 'node')})",
            remedy=f"start `ray start` where there is one, or use --device {'cpu' if kind == 'GPU' else 'cuda'}",
        )
    if device == "cpu":
        return device, {"num_cpus": 1, "num_gpus": 0}
    cores = min(map(_cores_each, with_gpu))
    return device, {"num_cpus": int(cores) if cores >= 1 else floor(cores * 100) / 100, "num_gpus": 1}


def _told(cluster: Cluster, nodes: Sequence[Mapping[str, float]]) -> str:
    workers = _counted(cluster.slots(), "worker")
    if cluster.device == "cpu":
        return f"{workers}, a CPU each"
    cores = sorted({max(1, int(_cores_each(node))) for node in nodes if node.get("GPU", 0) >= 1})
    idle = sum(node.get("GPU", 0) < 1 for node in nodes)
    text = f"{workers}, a GPU and {' or '.join(map(str, cores))} CPU threads each"
    return f"{text}; {_counted(idle, 'node')} without a GPU not used" if idle else text


def _counted(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _cores_each(node: Mapping[str, float]) -> float:
    """Returns the CPUs of a node for each of its GPUs."""
    return node.get("CPU", 0) / int(node["GPU"])


def _nodes(ray) -> list[dict[str, float]]:
    """Returns the resources of each node that is alive: "CPU" and "GPU" -> how many."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _own_node() -> dict[str, float]:
    """Returns the resources of the node that this process, a worker, runs on."""
    ray = importlib.import_module("ray")
    own = ray.get_runtime_context().get_node_id()
    return next(node["Resources"] for node in ray.nodes() if node["NodeID"] == own)


def _import_ray(address: str | None):
    patience = {"RAY_NUM_REDIS_GET_RETRIES": "1"} if address else {}  # Ray's own is a quarter of an hour
    for name, value in {**RAY_SETTINGS, **patience}.items():
        os.environ.setdefault(name, value)
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise UserError("Ray is not installed", remedy='pip install "riebench[ray]"') from error


def _connect(ray, address: str | None) -> None:
    """Connects to the cluster at the address, or starts one. `ray.init` takes SIGTERM for itself, and is made to give
    it back; Ctrl-C it leaves alone, and hides from the processes that it starts."""
    from riebench.core.threads import usable_cores

    before = signal.getsignal(signal.SIGTERM)
    try:
        if address:
            _check_answers(os.environ.get("RAY_ADDRESS", address) if address == "auto" else address)
        cores = {} if address else {"num_cpus": usable_cores()}
        ray.init(address or "local", log_to_driver=False, include_dashboard=False, logging_level="ERROR", **cores)
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(
            f"no Ray cluster at {address}: {error}" if address else f"Ray does not start: {error}",
            remedy="check the address, and RAY_AUTH_MODE where it asks for a token; or leave --address out",
        ) from error
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


def _check_answers(address: str) -> None:
    """Raises `OSError` or `ValueError` where nothing listens; Ray itself would try for minutes."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if host:
        socket.create_connection((host.strip("[]"), int(port)), ANSWER_SECONDS).close()
