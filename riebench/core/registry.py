"""Registries find things by name: ours are imported on demand, an installed package adds its own by entry points."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any, Generic, TypeVar

from riebench.core.errors import UserError, did_you_mean

T = TypeVar("T")
_registries: list[Registry] = []


@dataclass(frozen=True)
class _Entry(Generic[T]):
    target: str | T  # "module:attribute", or the thing itself
    summary: str
    package: str  # the distribution that brought it, "" for a name added in code

    @property
    def origin(self) -> str:
        where = self.target if isinstance(self.target, str) else getattr(self.target, "__module__", "an object")
        return f"{where} of the package {self.package}" if self.package else str(where)


class Registry(Generic[T]):
    """A registry of the names of one kind of thing.

    Nothing is imported until `get`; entry points are read at the first question asked.

    kind: the word used in messages, such as "metric". group: the entry-point group, such as "riebench.metrics".
    """

    def __init__(self, kind: str, group: str) -> None:
        self.kind, self.group = kind, group
        self._entries: dict[str, _Entry[T]] = {}
        self._installed_read = False
        _registries.append(self)

    def add(self, name: str, target: str | T, summary: str = "") -> None:
        """Adds a thing, or the place "module:attribute" where it will be found.

        Raises `UserError` when the name is taken, `ValueError` for a string that is not "module:attribute".
        """
        self._put(self._entries, name, _Entry(target, summary, package=""))

    def register(self, name: str, summary: str = "") -> Callable[[T], T]:
        """Returns a decorator that adds what it decorates, as `add` does."""

        def decorate(target: T) -> T:
            self.add(name, target, summary)
            return target

        return decorate

    def get(self, name: str) -> T:
        """Returns the thing of that name, imported now if need be.

        Raises `UserError` for an unknown name, and for a known one whose import fails.
        """
        entry = self._entry(name)
        return self._load(name, entry.target, entry) if isinstance(entry.target, str) else entry.target

    def names(self) -> tuple[str, ...]:
        """Returns our names in the order they were added, then those of installed packages, sorted."""
        return tuple(self._all())

    def summary(self, name: str) -> str:
        """Returns one line about a name, without importing it. Raises `UserError` for an unknown name."""
        entry = self._entry(name)
        return entry.summary or (f"from the package {entry.package}" if entry.package else "")

    def _put(self, entries: dict[str, _Entry[T]], name: str, entry: _Entry[T]) -> None:
        if isinstance(entry.target, str) and not all(entry.target.partition(":")):
            raise ValueError(f"{self.kind} {name!r}: the target {entry.target!r} is not 'module:attribute'")
        taken = entries.get(name)
        if taken is not None:
            raise UserError(
                f"two {self.kind}s are named {name!r}: {taken.origin} and {entry.origin}",
                remedy="rename one, or uninstall the package that brings it",
            )
        entries[name] = entry

    def _all(self) -> dict[str, _Entry[T]]:
        if not self._installed_read:
            entries = dict(self._entries)
            for point in sorted(entry_points(group=self.group), key=lambda point: point.name):
                package = point.dist.name if point.dist is not None else "(unknown)"
                self._put(entries, point.name, _Entry(point.value, summary="", package=package))
            self._entries, self._installed_read = entries, True
        return self._entries

    def _entry(self, name: str) -> _Entry[T]:
        entries = self._all()
        if name not in entries:
            raise UserError(
                f"there is no {self.kind} {name!r}{did_you_mean(name, entries)}",
                remedy=f"use one of {', '.join(entries) or '(none is registered)'}",
            )
        return entries[name]

    def _load(self, name: str, place: str, entry: _Entry[T]) -> T:
        module_name, _, attribute = place.partition(":")
        try:
            thing: Any = importlib.import_module(module_name)
            for part in attribute.split("."):
                thing = getattr(thing, part)
        except (ImportError, AttributeError) as error:
            raise UserError(
                f"{self.kind} {name!r} cannot be loaded from {entry.origin}: {error}",
                remedy=_remedy(module_name, entry.package, error),
            ) from error
        return thing


def registered() -> set[tuple[str, str]]:
    """Returns (group, name) of all that was added to a registry, but for what installed packages bring."""
    return {(registry.group, name) for registry in _registries for name in registry._entries}


def _remedy(module_name: str, package: str, error: Exception) -> str:
    missing = (error.name or "").partition(".")[0] if isinstance(error, ModuleNotFoundError) else ""
    if missing and missing != module_name.partition(".")[0]:
        return f"install {missing}"
    return f"reinstall or remove {package or 'riebench'}"
