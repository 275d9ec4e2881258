"""Ctrl-C here lets the work in hand be finished."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Interrupted(KeyboardInterrupt):
    """This is raised when the user stopped the work and all that was done is on disk; its text says how to go on."""


class Wish:
    """A wish says whether the user has asked to stop."""

    def __init__(self) -> None:
        self.stop = False


@contextmanager
def stopping() -> Iterator[Wish]:
    """Yields a `Wish` in which a first SIGINT (Ctrl-C) or SIGTERM is noted, and said on stderr; a second one stops at
    once. Signals cannot be taken outside the main thread: nothing is noted there."""
    wish = Wish()
    if threading.current_thread() is not threading.main_thread():
        yield wish
        return

    def note(number: int, _frame) -> None:
        if wish.stop:
            raise KeyboardInterrupt
        wish.stop = True
        print("riebench: finishing the batch; once more to stop at once", file=sys.stderr, flush=True)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield wish
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
