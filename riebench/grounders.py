"""The grounders by name. Imports no torch, so that listing them is quick."""

from __future__ import annotations

from collections.abc import Callable

from riebench.registry import Registry

#: Name -> loader `(device) -> grounder` with `masks(images_bchw, phrases) -> bool [b, h, w]`, which knows noun
#: phrases and "foreground".
GROUNDERS: Registry[Callable] = Registry("grounder", "riebench.grounders")
GROUNDERS.add(
    "tinyworld",
    "riebench.tinyworld.grounder:load_grounder",
    summary="segments the object and its accessories in tinyworld pictures",
)

#: Name -> weights, relative to the shipped data, of the grounders that do not bring their own.
SHIPPED_WEIGHTS = {"tinyworld": "tinyworld/grounder.safetensors"}
