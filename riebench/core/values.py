"""Plain values, as YAML, flags and Python give them, are held against annotations. Imports no torch."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import types
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from numbers import Integral, Real
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from riebench.core.errors import UserError, did_you_mean, shown


@dataclass(frozen=True)
class Range:
    """A range says which numbers are meant, both ends included, as in `Annotated[int, Range(1)]`."""

    least: float = -math.inf
    most: float = math.inf

    def __contains__(self, number: float) -> bool:
        return self.least <= number <= self.most

    def __str__(self) -> str:
        return f"of at least {self.least}" if self.most == math.inf else f"from {self.least} to {self.most}"


Seed = Annotated[int, Range(0, 2**63 - 1)]
Count = Annotated[int, Range(0, 10**8)]
BatchSize = Annotated[int, Range(0, 4096)]


@cache
def field_kinds(settings: Any) -> dict[str, Any]:
    """Returns what each field of a dataclass may be, as an annotation that `check_value` reads; `Any` where that cannot
    be known."""
    try:
        hints = get_type_hints(settings, include_extras=True)
    except NameError:  # a name that only type checkers import
        hints = {}
    return {one.name: hints.get(one.name, Any) for one in dataclasses.fields(settings) if one.init}


def check_fields(settings: Any, where: str = "") -> None:
    """Holds the values of a frozen dataclass against its annotations, and keeps them as `check_value` returns them; its
    `__post_init__` calls it, so that Python is refused what YAML is. Raises `UserError` as `check_value` does."""
    for name, kind in field_kinds(settings.__class__).items():
        object.__setattr__(settings, name, check_value(name, getattr(settings, name), kind, where))


def check_value(key: str, value: Any, kind: Any, where: str = "") -> Any:
    """Returns a value as its annotation has it: a list becomes a tuple, a whole number or one written as text (YAML
    reads `1e-1` so) becomes a float.

    kind: bool, int, float, str, `Mapping`, `Literal`, `tuple[..., ...]`, a union, or `Annotated` with a `Range`; a
    value of any other kind is returned as it is. where: what the message begins with. Raises `UserError` that names
    the key, the value and what is allowed.
    """
    origin, parts = get_origin(kind) or kind, get_args(kind)
    refusal = UserError(f"{where}{key} holds {shown(value)}{_near(value, kind)}", remedy=f"give {allowed(kind)}")
    if origin is Annotated:
        with contextlib.suppress(UserError):
            found = check_value(key, value, parts[0], where)
            if all(found in rule for rule in kind.__metadata__):
                return found
        raise refusal
    if origin in (Union, types.UnionType):
        given = [part for part in parts if part is not types.NoneType]
        if value is not None and len(given) == 1:
            return check_value(key, value, given[0], where)
        for part in parts:
            with contextlib.suppress(UserError):
                return check_value(key, value, part, where)
        raise refusal
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise UserError(f"{where}{key} is {shown(value)}, not a list", remedy=f"write {key}: [..., ...]")
        return tuple(check_value(key, item, parts[0], where) for item in value)
    if origin is Literal:
        if not isinstance(value, str) or value not in parts:
            raise refusal
        return value
    if origin not in _READERS:
        return value
    try:
        return _READERS[origin](value)
    except (TypeError, ValueError, OverflowError) as error:
        raise refusal from error


def allowed(kind: Any) -> str:
    """Returns the words for what an annotation allows, as "a whole number from 0 to 9"."""
    origin, parts = get_origin(kind) or kind, get_args(kind)
    if origin is Annotated:
        return " ".join((allowed(parts[0]), *map(str, kind.__metadata__)))
    if origin in (Union, types.UnionType):
        return ", or ".join(allowed(part) for part in parts)
    if origin is tuple:
        return f"a list, each of it {allowed(parts[0])}"
    if origin is Literal:
        *most, last = [part for part in parts if part]
        return f"{', '.join(most)} or {last}" if most else last
    return _WORDS.get(origin, "another")


def _near(value: Any, kind: Any) -> str:
    known = [part for part in get_args(kind) if part] if get_origin(kind) is Literal else []
    return did_you_mean(value, known) if isinstance(value, str) else ""


def _of_type(kind: type, value: Any) -> Any:
    if not isinstance(value, kind) or isinstance(value, bool) is not (kind is bool):
        raise TypeError
    return value


def _number(value: Any) -> float:
    number = float(value if isinstance(value, str) else _of_type(Real, value))
    if not math.isfinite(number):
        raise ValueError
    return number


_READERS = {
    bool: lambda value: _of_type(bool, value),
    int: lambda value: int(_of_type(Integral, value)),
    float: _number,
    str: lambda value: _of_type(str, value),
    Mapping: lambda value: dict(_of_type(Mapping, value)),
    types.NoneType: lambda value: _of_type(types.NoneType, value),
}
_WORDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    Mapping: "keys with their values",
    types.NoneType: "nothing",
}
