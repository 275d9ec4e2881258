"""Things that many tests share: the loaded backbone and one small run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from riebench.generation.sampler import Sampler
from riebench.runs.config import read_config

SETTINGS = str(Path(__file__).parents[1] / "benchmarks" / "settings.yaml")  # six methods, one of them on all subsets


def pytest_collection_modifyitems(items):
    if not torch.cuda.is_available():
        skip = pytest.mark.skip(reason="needs a GPU that torch can use")
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(skip)


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
    return Sampler(sampler.backbone, sampler.pipeline, 4)


@pytest.fixture(scope="session")
def small_config():
    return read_config(SETTINGS, {"edits_per_category": 1, "seeds": [42, 7], "resamples": 200, "batch_size": 16})


@pytest.fixture(scope="session")
def small_run(tmp_path_factory, small_config):
    from riebench.runs.run import run

    return run(small_config, tmp_path_factory.mktemp("run"), device="cpu")
