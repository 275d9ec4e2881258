"""Frozen settings refuse here what cannot be meant. No torch is imported."""

from __future__ import annotations

import math

from riebench.core.errors import UserError


def refuse_unless_whole(settings: object, *names: str) -> None:
    """Raises `UserError` where one of these settings is no whole number of at least 1."""
    for name in names:
        value = getattr(settings, name)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise UserError(
                f"{type(settings).__name__}'s {name} is {value!r}", remedy="give a whole number of at least 1"
            )


def refuse_unless_positive(settings: object, *names: str) -> None:
    """Raises `UserError` where one of these settings is no finite number above 0."""
    for name in names:
        value = getattr(settings, name)
        if not 0 < value < math.inf:
            raise UserError(f"{type(settings).__name__}'s {name} is {value!r}", remedy="give a number above 0")
