"""Processes that are forked from one that has imported everything: starting one costs no imports.

What happens in them afterwards, be it killed, stopped or refused, is as in a fresh interpreter.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable
from multiprocessing import forkserver
from pathlib import Path

import pytest

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["riebench.runs.run", "forked_imports", "test_resume", "test_store"])


def start(target: Callable[..., None], *words: object) -> CONTEXT.Process:
    """Returns a process that has begun to call a function with the words given."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), *sys.path]))  # for its own imports
        forkserver.ensure_running()
    process = CONTEXT.Process(target=target, args=words)
    process.start()
    return process
