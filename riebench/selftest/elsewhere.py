"""Step 10: what a worker of Ray sees of this machine, and the tests that want a GPU."""

from __future__ import annotations

import importlib.util
from typing import Any

from riebench.core.ray_cluster import ray_cluster
from riebench.core.ray_pool import call_on_cluster
from riebench.selftest.bench import Bench
from riebench.selftest.step import Check, Found, NotPossible

TESTS = "pytest -m gpu"


def look(bench: Bench) -> Found:
    """Returns the threads and devices of a worker on this machine."""
    if importlib.util.find_spec("ray") is None:
        raise NotPossible(f'Ray is not installed -> pip install "riebench[ray]"; a clone\'s tests of a GPU: `{TESTS}`')
    with ray_cluster(None, bench.device.type) as cluster:
        workers, given = cluster.slots(), dict(cluster.resources)
        worker = call_on_cluster(cluster, _worker, "the look at a worker")
    seen = {"workers": workers, "given": given, "worker": worker}
    threads, devices = worker["threads"], worker["devices"]
    wrong = [f"a worker has {threads} threads"] if threads < 1 else []
    wrong += ["a worker sees no GPU"] if bench.device.type == "cuda" and not devices else []
    figure = f"{workers} workers, each with {threads} threads and {devices} GPUs; a clone's tests of a GPU: `{TESTS}`"
    return Found("; ".join([*wrong, figure]), not wrong, seen)


def _worker(_device: Any) -> dict[str, Any]:
    import os

    import torch

    return {
        "threads": torch.get_num_threads(),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS"),
        "devices": torch.cuda.device_count() if torch.cuda.is_available() else 0,
    }


CHECK = Check(10, "elsewhere", f"a worker of Ray has threads, and the GPU where one is used; `{TESTS}` passes", look)
