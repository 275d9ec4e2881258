"""The grounders by name. Imports no torch, so that listing them is quick."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from riebench.files import data_folder
from riebench.registry import Registry

#: Name -> loader `(device) -> grounder` with `masks(images_bchw, phrases) -> bool [b, h, w]`, which knows noun
#: phrases and "foreground".
GROUNDERS: Registry[Callable] = Registry("grounder", "riebench.grounders")
GROUNDERS.add(
    "tinyworld",
    "riebench.tinyworld.grounder:load_grounder",
    summary="segments the object and its accessories in tinyworld pictures",
)

_SHIPPED_WEIGHTS = {"tinyworld": "tinyworld/grounder.safetensors"}


def grounder_digest(name: str) -> str:
    """sha256 of a shipped grounder's weights, in hex; empty for a grounder that brings its own."""
    if name not in _SHIPPED_WEIGHTS:
        return ""
    with (data_folder() / _SHIPPED_WEIGHTS[name]).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
