"""Errors that a user can mend say what was wrong, where, and what to do; the command line prints one line, exit 2."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """An error in the user's input, files or machine. `remedy` is the part after "-> "."""

    status = 2
    """The exit status of the command that it ends."""

    def __init__(self, message: str, *, remedy: str = "") -> None:
        super().__init__(f"{message} -> {remedy}" if remedy else message)
        self.message, self.remedy = message, remedy


class NothingValid(UserError):
    """An error of results that are there, and of which too many are failures for a table."""

    status = 1


class Unusable(UserError):
    """An error of what all cases share, as of a dictionary: it ends a run, where another `UserError` of a method is the
    failure of one case."""


def did_you_mean(word: object, known: Iterable[str]) -> str:
    """Returns `"; did you mean 'x'?"` for the nearest known word, or an empty string."""
    near = difflib.get_close_matches(word[:80] if isinstance(word, str) else shown(word), list(known), n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else ""


def shown(value: object, most: int = 80) -> str:
    """Returns a value as a message has it: its `repr`, cut to `most` characters, of whatever size the value is."""
    try:
        words = repr(value)
    except (ValueError, RecursionError):  # a whole number of thousands of digits; what holds itself
        words = f"a {type(value).__name__} too large to be written"
    return words if len(words) <= most else f"{words[: most - 3]}..."
