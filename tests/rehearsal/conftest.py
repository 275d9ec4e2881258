"""The faked cache of the Hub, made once a test session."""

from __future__ import annotations

import os

import pytest
from rehearsal.fake_hub import shared_hub


@pytest.fixture(scope="session")
def hub_home(tmp_path_factory):
    """What `HF_HOME` is to be."""
    base = tmp_path_factory.getbasetemp()
    return shared_hub(base.parent if "PYTEST_XDIST_WORKER" in os.environ else base)
