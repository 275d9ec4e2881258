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
    near = difflib.get_close_matches(str(word), list(known), n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else ""
