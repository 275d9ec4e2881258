"""Things that many tests share: the loaded backbone, one small run, and how tests are marked and shared out.

Two processes run the tests (`pytest-xdist`), each with one thread. The tests of a file stay together, so that what they
share is made once; those that start, kill or signal processes are one group, so that they do not disturb one another.
"""

from __future__ import annotations

import gc
import os
from pathlib import Path

if "PYTEST_XDIST_WORKER" in os.environ:  # two processes with two threads each would wait for one another
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

from riebench.runs.config import read_config

SETTINGS = str(Path(__file__).parents[1] / "benchmarks" / "settings.yaml")  # six methods, one of them on all subsets


# torch and diffusers are imported where they are needed: the process that shares out the tests needs neither


def pytest_collection_finish(session):
    """What was imported is no garbage: it is not looked through again, which takes a second each time."""
    gc.collect()
    gc.freeze()


def pytest_itemcollected(item):  # before xdist looks at the groups
    if "chromium" in getattr(item, "fixturenames", ()):
        item.add_marker(pytest.mark.browser)
    if any("Ray is not installed" in str(mark.kwargs.get("reason")) for mark in item.iter_markers("skipif")):
        item.add_marker(pytest.mark.ray)
    if "gpu" in item.keywords and not _has_gpu():
        item.add_marker(pytest.mark.skip(reason="needs a GPU that torch can use"))
    group = "processes" if item.get_closest_marker("process") else item.path.name
    item.add_marker(pytest.mark.xdist_group(group))


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


@pytest.fixture(autouse=True)
def registries():
    """What a test adds to a registry of names (`METHODS`, `METRICS`, ...) is gone after it, as is what the code of a
    page that it runs adds."""
    from riebench.core import registry

    found = [(table, table._entries, dict(table._entries), table._installed_read) for table in registry._registries]
    yield
    for table, entries, before, installed_read in found:
        entries.clear()
        entries.update(before)
        table._entries, table._installed_read = entries, installed_read


@pytest.fixture(scope="session")
def engine():
    from riebench.runs.engine import open_engine

    return open_engine("tinyworld-turbo@1", "cpu", batch_size=8)


@pytest.fixture(scope="session")
def sampler(engine):
    return engine.sampler


@pytest.fixture(scope="session")
def of_four(sampler):
    """The shared sampler in batches of four."""
    from riebench.generation.sampler import Sampler

    return Sampler(sampler.backbone, sampler.pipeline, 4)


@pytest.fixture(scope="session")
def hub_home(tmp_path_factory):
    """What `HF_HOME` is to be: the faked cache of the Hub (`tests/rehearsal`), made once for all processes."""
    from rehearsal.fake_hub import shared_hub

    base = tmp_path_factory.getbasetemp()
    return shared_hub(base.parent if "PYTEST_XDIST_WORKER" in os.environ else base)


@pytest.fixture(scope="module")
def no_tables():
    """Runs write an empty summary and report, for tests that look at neither: they take half of a small run's time."""
    from riebench.core import files
    from riebench.runs import run as runs

    def write_report(folder, *_tables, **_words):
        files.write_text(folder / "report.html", "<html></html>")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "summarise", lambda *_scores, **_words: {"dominance": {}, "failures": []})
        patch.setattr(runs, "write_report", write_report)
        yield


@pytest.fixture(scope="session")
def small_config():
    return read_config(SETTINGS, {"edits_per_category": 1, "seeds": [42, 7], "resamples": 200, "batch_size": 16})


@pytest.fixture(scope="session")
def small_run(tmp_path_factory, small_config):
    from riebench.runs.run import run

    return run(small_config, tmp_path_factory.mktemp("run"), device="cpu")


@pytest.fixture(scope="session")
def nodes():
    """A Ray cluster of two nodes, to which this process is connected (`ray_nodes.Nodes`)."""
    from ray_nodes import Nodes

    found = Nodes()
    yield found
    found.close()


@pytest.fixture(scope="session")
def cluster(nodes):
    """Two workers on that cluster, a CPU each."""
    from riebench.core.ray_cluster import ray_cluster

    with ray_cluster(None, "cpu") as found:
        yield found
