"""A backbone of one's own, of plain values as YAML gives them. Imports no torch."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from riebench.backbones.other_files import fusing
from riebench.backbones.released import VAES
from riebench.backbones.sdxl import SDXL
from riebench.backbones.table import BACKBONES, DTYPES, Backbone
from riebench.backbones.worlds import ROLES
from riebench.core.errors import UserError, did_you_mean, shown
from riebench.core.files import named_path


def backbone_from(values: Mapping[str, Any], where: str) -> Backbone:
    """Returns a backbone of one's own, of plain values as YAML gives them.

    values: `name` (the model, "@", its steps), and `like` (a backbone in the table, whose fields are taken where none
    is given) or `folder` (of a diffusers pipeline; relative to the current directory, in a run's YAML file to that
    file; `~` is the home) or both. Without `like`, `steps` and `guidance` are needed, and what is left out is as for
    SDXL. The other keys are `grounder`, `judges`, `dictionaries`, `summary`, `vae`, `height`, `width`, `dtype`,
    `world`: fields of `Backbone`; where another `folder` is given the `world` is not taken from `like`. where: what
    error messages begin with. Raises `UserError` for unknown, missing, mistyped or impossible values, and for a LoRA.
    """
    for key, value in values.items():
        if key in ("lora", "loras"):
            raise _no_lora(values, key, where)
        if key not in KEYS:
            raise UserError(
                f"{where}: unknown key {key!r} of a backbone{did_you_mean(key, KEYS)}",
                remedy=f"the keys are {', '.join(KEYS)}",
            )
        fits, remedy = KEYS[key]
        if not fits(value):
            near = did_you_mean(
                value, {"like": BACKBONES.names(), "vae": VAES, "dtype": DTYPES, "world": ROLES}.get(key, ())
            )
            raise UserError(f"{where}: {key} is {shown(value)}{near}", remedy=remedy)
    if "like" in values:
        model = BACKBONES.get(values["like"])
        taken = vars(model) | {"summary": "", "dictionaries": model.trained_on[-1]}
    else:
        taken = {"grounder": "grounding-dino+sam2", "judges": "sdxl"}
    own = {key: value for key, value in values.items() if key != "like"}
    if "folder" in own:
        folder = str(named_path(own["folder"]).absolute())
        own = {"world": "", "weights": None, "weights_full": None} | own | {"folder": folder}
    if "guidance" in own:
        own["guidance"] = float(own["guidance"])
    for key in ("name", "folder", "steps", "guidance"):
        if key not in (own if key == "name" else taken | own):
            remedy = "give it" if key == "name" else "give it, or `like` with a name of `riebench ls backbones`"
            raise UserError(f"{where}: the backbone has no {key}", remedy=remedy)
    found = Backbone(**(taken | own))
    model, _, steps = found.name.rpartition("@")
    if int(steps) != found.steps:
        raise UserError(
            f"{where}: name is {found.name!r}, but the backbone has {found.steps} steps",
            remedy=f"name it {model}@{found.steps}, or give `steps: {steps}`",
        )
    return found


def _no_lora(values: Mapping[str, Any], key: str, where: str) -> UserError:
    """Returns what is said of a LoRA beside a backbone, with the lines that put it into one."""
    like = values.get("like")
    known = BACKBONES.get(like) if isinstance(like, str) and like in BACKBONES.names() else None
    base = values.get("folder") or (known.weights.repo if known and known.weights else "BASE")
    return UserError(
        f"{where}: a backbone has no {key}: LoRAs are not loaded here",
        remedy=fusing(known.family if known else SDXL, str(base), str(values[key])),
    )


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _is_guidance(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and bool(re.fullmatch(r"[\w.+-]+@[1-9]\d*", value)) and value not in BACKBONES.names()


_PIXELS = (
    lambda value: _is_whole(value, 0) and value % 8 == 0,
    "give pixels, a multiple of 8; 0 is the model's own size",
)
#: What `backbone_from` reads: key -> (whether a value is possible, what to write).
KEYS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "name": (
        _is_name,
        "give a name that is not taken: letters, digits, . _ + -, then @ and the steps, as in my-sdxl@4",
    ),
    "like": (lambda value: value in BACKBONES.names(), "use a name of `riebench ls backbones`"),
    "folder": (_is_text, "give the path of a diffusers pipeline"),
    "steps": (lambda value: _is_whole(value, 1), "give a whole number from 1 on"),
    "guidance": (_is_guidance, "give a number from 0 on; 0 samples without guidance"),
    "grounder": (_is_text, "give a name of `riebench ls grounders`"),
    "judges": (_is_text, "give a family of judges: sdxl or tinyworld"),
    "dictionaries": (
        _is_text,
        "give the name of the backbone whose dictionaries are used where it has none of its own",
    ),
    "summary": (_is_text, "give a line of text"),
    "vae": (lambda value: value in tuple(VAES), f"use {', '.join(VAES)}, or leave it out for the model's own"),
    "height": _PIXELS,
    "width": _PIXELS,
    "dtype": (lambda value: value in DTYPES, f"use {', '.join(DTYPES)}"),
    "world": (lambda value: value in tuple(ROLES), f"use {', '.join(ROLES)}, or leave it out"),
}
