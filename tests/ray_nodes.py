"""A Ray cluster of several nodes on this machine, and workers that fall with their node."""

from __future__ import annotations

import os
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

try:
    import ray
    from ray.cluster_utils import Cluster
except ImportError:
    ray = None

needs_ray = pytest.mark.skipif(ray is None, reason="Ray is not installed")
#: So that the loss of a node is noticed after a second or two, not half a minute.
WATCHFUL = {"health_check_initial_delay_ms": 500, "health_check_period_ms": 500, "health_check_failure_threshold": 2}


class Nodes:
    """A head without a CPU, to which this process is connected, and two nodes of one CPU each."""

    def __init__(self) -> None:
        head = {"num_cpus": 0, "num_gpus": 0, "include_dashboard": False, "_system_config": WATCHFUL}
        self._cluster = Cluster(initialize_head=True, head_node_args=head)
        for _ in range(2):
            self.add(num_cpus=1, num_gpus=0)
        ray.init(self._cluster.address, log_to_driver=False, logging_level="ERROR")

    def close(self) -> None:
        ray.shutdown()
        self._cluster.shutdown()

    def add(self, **resources):
        node = self._cluster.add_node(**resources)
        if ray.is_initialized():
            self._wait_until(node.node_id, alive=True)
        return node

    def remove(self, node) -> None:
        if node in self._cluster.worker_nodes:
            self._cluster.remove_node(node)
            self._wait_until(node.node_id, alive=False)

    @contextmanager
    def one_falls(self, marker: Path):
        """Kills the node that a worker writes into the marker (`fall_here`), and puts another in its place afterwards.
        Raises `AssertionError` where none is written."""
        found = []

        def watch() -> None:
            while not marker.exists() and not found:
                time.sleep(0.05)
            found.extend(node for node in self._cluster.worker_nodes if node.node_id == marker.read_text())
            self._cluster.remove_node(found[0], allow_graceful=False)

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        yield
        assert marker.exists(), "nobody fell"
        watcher.join()
        self.add(num_cpus=1, num_gpus=0)

    def _wait_until(self, node_id: str, *, alive: bool) -> None:
        deadline = time.monotonic() + 60
        while any(node["NodeID"] == node_id and node["Alive"] for node in ray.nodes()) != alive:
            assert time.monotonic() < deadline, "the cluster does not notice"
            time.sleep(0.1)


def fall_here(marker: Path) -> None:
    """Says on which node this worker is, and waits to fall with it; every later one goes on."""
    own = marker.with_name(f"{marker.name}-{os.getpid()}")
    own.write_text(ray.get_runtime_context().get_node_id())
    try:
        os.link(own, marker)
    except FileExistsError:
        return
    time.sleep(600)
