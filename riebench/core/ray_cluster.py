"""This connects to a Ray cluster, or starts one on this machine."""

from __future__ import annotations

import importlib
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

from riebench.core.errors import UserError
from riebench.core.threads import usable_cores

ANSWER_SECONDS = 5
#: What Ray is told by the environment, where the user has not set it.
RAY_SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # under `uv run` Ray would upload the working directory
}


@contextmanager
def ray_cluster(address: str | None, device: str) -> Iterator[tuple[ModuleType, int, dict[str, int]]]:
    """Yields (Ray, how many workers have room, what each is given): a GPU each where `device` is "cuda", else a CPU.

    address: of a running cluster, or "auto"; None starts one on the free cores and the GPUs of this machine. A cluster
    that the caller is connected to already is used, and left connected. Raises `UserError` where Ray, the cluster or a
    GPU is missing.
    """
    ray = _import_ray(address)
    connected = ray.is_initialized()
    if not connected:
        _connect(ray, address)
    try:
        kind = "GPU" if device == "cuda" else "CPU"
        slots = int(ray.cluster_resources().get(kind, 0))
        if slots < 1:
            raise UserError(f"the Ray cluster has no {kind}", remedy="start it with some, or use another --device")
        yield ray, slots, {"num_cpus": int(kind == "CPU"), "num_gpus": int(kind == "GPU")}
    finally:
        if not connected:
            ray.shutdown()


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
