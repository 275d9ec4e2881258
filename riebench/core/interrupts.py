"""Ctrl-C that lets the work in hand be finished."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Interrupted(KeyboardInterrupt):
    """The user stopped the work, and everything that was done is on disk. Its text says how to go on."""


class Wish:
    """Whether the user has asked to stop."""

    def __init__(self) -> None:
        self.stop = False


@contextmanager
def stopping() -> Iterator[Wish]:
    """While active, a first SIGINT (Ctrl-C) or SIGTERM is noted in the yielded `Wish` and said on stderr; a second one
    stops at once. Does nothing outside the main thread, where signals cannot be taken."""
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
