"""Content keys: every generated thing has a key made of all that decides it. Imports no torch."""

from __future__ import annotations

import builtins
import dataclasses
import hashlib
import inspect
import json
import math
import sys
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from functools import cached_property
from pathlib import PurePath
from types import FunctionType

import numpy as np

from riebench.core.errors import UserError


def describe(value: object) -> object:
    """Returns a canonical description of a value in what JSON knows.

    Numbers, text, paths and lists are themselves, sets are sorted, arrays and tensors become dtype, shape and sha256,
    and any other object its class and its attributes, without those that a `cached_property` keeps. Raises `UserError`
    naming class and place of what cannot be described: a function, an open file, NaN, an object that holds itself.
    """
    return _describe(value, type(value).__name__, frozenset())


def digest(value: object) -> str:
    """Returns 32 hex digits, equal for values with equal descriptions and only for them. Raises as `describe` does."""
    return hashlib.sha256(_canonical(describe(value)).encode()).hexdigest()[:32]


def _canonical(described: object) -> str:
    return json.dumps(described, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _describe(value: object, where: str, within: frozenset[int]) -> object:
    """Returns `describe` of a value inside the one that is described.

    where: how one gets to the value from that one. within: ids of the values around it.
    """
    if isinstance(value, np.bool_ | np.integer | np.floating):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{where} is {value}, which cannot be part of a key", remedy="use a finite number")
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, PurePath):
        return str(value)
    array = _describe_array(value)
    if array is not None:
        return array
    if id(value) in within:
        raise UserError(f"{where} holds itself, which cannot be part of a key", remedy="cut the circle")
    within |= {id(value)}
    if isinstance(value, list | tuple):
        return [_describe(item, f"{where}[{i}]", within) for i, item in enumerate(value)]
    if isinstance(value, AbstractSet):
        return sorted((_describe(item, f"an item of {where}", within) for item in value), key=_canonical)
    if isinstance(value, Mapping):
        described = {}
        for key, item in value.items():
            name = key if isinstance(key, str) else _canonical(_describe(key, f"a key of {where}", within))
            if name in described:
                raise UserError(f"{where} has two keys that read {name!r}", remedy="rename one")
            described[name] = _describe(item, f"{where}[{key!r}]", within)
        return described
    attributes = _attributes(value)
    if attributes is None:
        raise UserError(
            f"{where} is a {name_of(type(value))}, which cannot be part of a key",
            remedy="keep plain values in it, or make it a dataclass of them",
        )
    described = {name: _describe(item, f"{where}.{name}", within) for name, item in attributes.items()}
    return {"class": name_of(type(value)), **described}


def _describe_array(value: object) -> dict[str, object] | None:
    """Returns dtype, shape and sha256 of an array or a torch tensor; None for anything else, and where its bytes are
    not all it is."""
    torch = sys.modules.get("torch")  # without it there are no tensors
    if torch is not None and isinstance(value, torch.Tensor):
        try:
            data = (
                value.detach()
                .cpu()
                .resolve_conj()
                .resolve_neg()
                .contiguous()
                .reshape(-1)
                .view(torch.uint8)
                .numpy()
                .tobytes()
            )
        except (RuntimeError, NotImplementedError, TypeError):  # sparse, quantised, on the meta device
            return None
    elif isinstance(value, np.ndarray) and not value.dtype.hasobject:
        data = value.tobytes()
    else:
        return None
    return {"dtype": str(value.dtype), "shape": list(value.shape), "sha256": hashlib.sha256(data).hexdigest()}


def _attributes(value: object) -> dict[str, object] | None:
    """Returns what an object consists of, by name; None where that is not its attributes alone, or it is a class."""
    kind = type(value)
    if isinstance(value, type) or is_builtin(kind):
        return None
    if (kind.__reduce__, kind.__reduce_ex__) != (object.__reduce__, object.__reduce_ex__):
        return None
    if kind.__getstate__ is not object.__getstate__ and not isinstance(kind.__getstate__, FunctionType):
        return None  # the state is in C, as that of io.StringIO
    try:
        object.__reduce_ex__(value, 2)  # fails for what keeps a state in C: functions, modules, open files
    except TypeError:
        return None
    state = object.__getstate__(value)
    in_dict, in_slots = state if isinstance(state, tuple) else (state, None)
    held = {**(in_dict or {}), **(in_slots or {})}
    kept = {name for name in held if isinstance(inspect.getattr_static(kind, name, None), cached_property)}
    fields = {field.name for field in dataclasses.fields(value)} if dataclasses.is_dataclass(value) else set()
    return {name: getattr(value, name) for name in fields} | {n: item for n, item in held.items() if n not in kept}


def is_builtin(kind: FunctionType | type) -> bool:
    """Returns whether a class is one of Python's builtins."""
    return vars(builtins).get(kind.__name__) is kind


def name_of(thing: object) -> str:
    """Returns module and name of a class, function or module; the name alone of what has no module."""
    name = getattr(thing, "__qualname__", None) or getattr(thing, "__name__", "")
    module = getattr(thing, "__module__", None)
    return f"{module}.{name}" if isinstance(module, str) else str(name)
