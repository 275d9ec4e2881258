"""What a step of the self-test is, and what it may find. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from riebench.core.errors import UserError

if TYPE_CHECKING:
    from riebench.selftest.bench import Bench

OK, NOT_OK, NOT_POSSIBLE = "ok", "not ok", "not possible here"


class NotPossible(Exception):
    """A reason why a step cannot be done on this machine. It is no fault."""


@dataclass(frozen=True)
class Found:
    """What a step saw."""

    figure: str
    """In one line."""
    ok: bool
    """Whether it is as it should be."""
    detail: Mapping[str, Any] = field(default_factory=dict)
    """All figures, as `plain` can make them."""
    missing: str = ""
    """Why the step could not be done in full; "" where it was. What was seen is ok all the same, or is not."""


@dataclass(frozen=True)
class Check:
    """A step that is to be done."""

    number: int
    name: str
    wanted: str
    """What its figure should be."""
    do: Callable[[Bench], Found]
    """Does it. Raises `NotPossible` where this machine cannot, and anything else where something is wrong."""


@dataclass(frozen=True)
class Step:
    """A step that was done."""

    number: int
    name: str
    status: str
    """`OK`, `NOT_OK` or `NOT_POSSIBLE`."""
    figure: str
    """What was seen, or the reason why it was not, in one line."""
    wanted: str
    """What its figure should be."""
    seconds: float
    detail: Mapping[str, Any]
    """All figures, in what JSON can hold."""


def one_line(error: BaseException) -> str:
    """Returns what an error says, in one line; one that is not the user's with its kind before it."""
    words = " ".join(str(error).split())
    if isinstance(error, UserError | NotPossible):
        return words
    return f"{type(error).__name__}: {words}" if words else type(error).__name__


def plain(value: Any) -> Any:
    """Returns a value in what JSON can hold: numbers of five digits, and None for one that is not finite."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.5g}") if math.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else str(value)
