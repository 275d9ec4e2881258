"""Twins: copies for another thread that share every weight and keep their own state."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any, TypeVar

from torch import Tensor, nn

T = TypeVar("T")


def twin_of(thing: T) -> T:
    """Returns a deep copy of anything that holds networks, which shares their parameters and buffers with it.

    Modules are copied, so that hooks and what else they keep while they run are each copy's own.
    """
    return copy.deepcopy(thing, memo={id(tensor): tensor for tensor in _weights(thing)})


def _weights(thing: Any) -> Iterator[Tensor]:
    """Yields the parameters and buffers of every module that can be reached from a thing by its attributes."""
    waiting, seen = [thing], set()
    while waiting:
        item = waiting.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, nn.Module):
            yield from item.parameters()
            yield from item.buffers()
        if isinstance(item, dict):
            waiting += item.values()
        elif isinstance(item, list | tuple | set):
            waiting += item
        elif hasattr(item, "__dict__") and not isinstance(item, type):
            waiting += vars(item).values()
