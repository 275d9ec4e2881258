"""The connection to a Ray cluster: who works on it, with which device, threads and code; and what is said where nobody
can."""

from __future__ import annotations

import itertools
import os
import signal
import sys
import time
from importlib import import_module
from types import SimpleNamespace

import pytest
import torch
from ray_nodes import needs_ray, ray

from riebench.core.errors import UserError
from riebench.core.ray_cluster import Cluster, _share, cluster_for, ray_cluster
from riebench.core.ray_pool import Job, Pool, call_on_cluster
from riebench.core.threads import usable_cores

# Ray itself


def test_without_ray_the_user_is_told_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r'not installed -> pip install "riebench\[ray\]"'), cluster_for("ray", "cpu"):
        pass


def test_the_local_engine_needs_no_ray_and_other_words_are_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with cluster_for("local", "cpu") as found:
        assert found is None
    with pytest.raises(UserError, match=r"unknown engine 'rai'; did you mean 'ray'\? -> use local or ray"):
        cluster_for("rai", "cpu")
    with pytest.raises(UserError, match="unknown device 'cud'; did you mean 'cuda'"), cluster_for("ray", "cud"):
        pass


@pytest.mark.process
@needs_ray
@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "auto", "nonsense", "host:port"])
def test_an_address_where_nothing_answers_is_said_at_once(address, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    assert not ray.is_initialized(), "these tests come before those that start a cluster"
    handler, start = signal.getsignal(signal.SIGTERM), time.monotonic()
    with pytest.raises(UserError, match=f"no Ray cluster at {address}: .* -> check the address"):
        ray_cluster(address, "cpu").__enter__()
    assert time.monotonic() - start < 10 and signal.getsignal(signal.SIGTERM) is handler


# who works


@pytest.mark.parametrize(
    ("nodes", "device", "expected"),
    [
        ([{"CPU": 4}, {"CPU": 2}], "auto", ("cpu", {"num_cpus": 1, "num_gpus": 0})),
        ([{"CPU": 8}, {"CPU": 48, "GPU": 4}], "auto", ("cuda", {"num_cpus": 12, "num_gpus": 1})),
        ([{"CPU": 8}, {"CPU": 48, "GPU": 4}], "cpu", ("cpu", {"num_cpus": 1, "num_gpus": 0})),
        ([{"CPU": 7, "GPU": 2}, {"CPU": 48, "GPU": 4}, {}], "cuda", ("cuda", {"num_cpus": 3, "num_gpus": 1})),
        ([{"CPU": 2, "GPU": 8}], "auto", ("cuda", {"num_cpus": 0.25, "num_gpus": 1})),
        ([{"GPU": 2}], "auto", ("cuda", {"num_cpus": 0, "num_gpus": 1})),
    ],
)
def test_a_worker_has_a_gpu_where_there_is_one_and_the_cores_that_go_with_it(nodes, device, expected):
    assert _share(nodes, device) == expected


def test_room_is_counted_node_by_node_and_only_where_they_are_alive():
    nodes = [({"CPU": 3.5, "GPU": 2}, True), ({"CPU": 1.5}, True), ({"CPU": 64, "GPU": 8}, False)]
    fake = SimpleNamespace(nodes=lambda: [{"Resources": resources, "Alive": alive} for resources, alive in nodes])
    assert [Cluster(fake, device, {}).slots() for device in ("cpu", "cuda")] == [3 + 1, 2]


def test_where_no_node_can_do_the_work_it_is_said():
    with pytest.raises(UserError, match=r"has no GPU \(2 nodes\) -> .* or use --device cpu"):
        _share([{"CPU": 8}, {"CPU": 1, "GPU": 0.5}], "cuda")
    with pytest.raises(UserError, match=r"has no CPU \(1 node\)"):
        _share([{"GPU": 1}], "cpu")


def probe(believes):
    """A worker that says what it was given. believes: that torch can use a GPU."""

    class Probe:
        def load(self, terms):
            if believes:
                torch.cuda.is_available = lambda: True
            return str(terms.settle())

        def work(self):
            return os.getpid(), ray.get_runtime_context().get_node_id(), torch.get_num_threads(), usable_cores()

    return Probe


@pytest.mark.process
@needs_ray
def test_workers_on_gpus_have_the_cores_of_their_node_wherever_the_driver_is(nodes, cluster, capsys):
    """Beside two nodes without a GPU, which take no part; the driver's own machine has no GPU either."""
    assert not torch.cuda.is_available()
    small, large = nodes.add(num_cpus=4, num_gpus=2), nodes.add(num_cpus=6, num_gpus=1)
    try:
        with ray_cluster(None, "auto") as found:
            assert (found.device, found.slots()) == ("cuda", 3)
            assert "3 workers, a GPU and 2 or 6 CPU threads each; 3 nodes without a GPU not used" in said(capsys)
            with Pool(found, probe(True), ()) as pool:
                assert pool.first() == "cuda"
                made = set()
                for _, answer in pool.work(Job("it", ()) for _ in itertools.count()):
                    made.add(answer)
                    if len(made) == 3:
                        break
                expected = [(small.node_id, 2, 2), (small.node_id, 2, 2), (large.node_id, 6, 6)]
                assert sorted(words for _, *words in made) == sorted(map(list, expected))
                assert ray.available_resources().get("GPU", 0) == 0, "each of the three has one"
                assert ray.available_resources()["CPU"] == 2 + 10 - 3 * 2
            with (
                pytest.raises(UserError, match="Ray counts a GPU on .*, and torch can use none there -> install"),
                Pool(found, probe(False), ()) as pool,
            ):
                pool.first()
            nodes.remove(small)
            nodes.remove(large)
            assert found.slots() == 0
            with pytest.raises(UserError, match="no node of the Ray cluster that is left has a GPU -> start some"):
                call_on_cluster(found, str, "it")
        with pytest.raises(UserError, match=r"has no GPU \(3 nodes\)"), ray_cluster(None, "cuda"):
            pass
    finally:
        for node in (small, large):
            nodes.remove(node)


def said(capsys):
    return capsys.readouterr().err


@pytest.mark.process
@needs_ray
def test_a_class_that_a_node_cannot_import_is_said_with_its_name(cluster, tmp_path, monkeypatch):
    (tmp_path / "unheard_of.py").write_text("class Worker:\n    def load(self, terms):\n        return 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with (
        pytest.raises(UserError, match="a node of the Ray cluster lacks .*unheard_of.* -> install riebench"),
        Pool(cluster, import_module("unheard_of").Worker, ()) as pool,
    ):
        pool.first()


@pytest.mark.process
@needs_ray
def test_workers_that_die_while_the_first_loads_are_given_up(cluster):
    class Dying:
        def load(self, terms):
            os.kill(os.getpid(), signal.SIGKILL)

    with Pool(cluster, Dying, ()) as pool, pytest.raises(UserError, match="3 workers died while it loaded"):
        pool.first()
