"""Verbs of weights and of the machine that they are for: fetch, doctor."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from riebench.cli.flags import Verb, word
from riebench.core.errors import UserError, did_you_mean
from riebench.core.json_text import json_text
from riebench.runs.config import RunConfig


@dataclass(frozen=True, kw_only=True)
class Fetch:
    """Holds the words of `riebench fetch`."""

    names: tuple[str, ...] = word((), positional=True, metavar="name")
    """What to fetch; without a name, what there is."""


def _fetch(words: Fetch) -> None:
    from riebench.core.fetching import fetch
    from riebench.doctor import fetch_names

    known = fetch_names()
    names = [re.sub(r"@\d+(?=:|$)", "", name) for name in words.names]  # the same files, whatever the steps
    for name in names:
        if name not in known:
            raise UserError(
                f"there is nothing to fetch named {name!r}{did_you_mean(name, known)}", remedy=f"use {', '.join(known)}"
            )
    for name in names:
        for weights in known[name]:
            print(fetch(name, weights))
    if not names:
        width = max(map(len, known))
        for name, parts in known.items():
            print(f"{name:<{width}}  {sum(w.gigabytes for w in parts):6.2f} GB  {', '.join(w.repo for w in parts)}")


#: Fields of a RunConfig that are flags of `riebench doctor`: those that decide what a run needs.
OVERRIDES = ("backbone", "edits", "split", "mode", "dtype", "dictionaries")


@dataclass(frozen=True, kw_only=True)
class Doctor:
    """Holds the words of `riebench doctor`, beside the fields of a RunConfig."""

    run: str = ""
    """A shipped run (riebench ls runs) or a YAML file: every part that it needs, with the command that gets what is
    missing; the exit status is 1 where something is."""
    device: str = "auto"
    """Where that run is to compute: auto, cpu or cuda."""
    json: bool = False
    """Print JSON."""


def _doctor(words: Doctor, overrides: Mapping[str, Any]) -> int:
    if words.run:
        return _doctor_of_run(words, overrides)
    if overrides:
        raise UserError(f"--{next(iter(overrides))} is a setting of a run", remedy="add --run quickstart")

    from riebench.doctor import examine, format_doctor

    found = examine()
    print(json_text(found, indent=2) if words.json else format_doctor(found))
    if not words.json:
        print("\nwhat a run needs: riebench doctor --run quickstart --backbone sdxl-turbo@4")
    return 0


def _doctor_of_run(words: Doctor, overrides: Mapping[str, Any]) -> int:
    from riebench.runs.config import read_config
    from riebench.runs.parts import describe_parts, format_parts, parts_of

    found = parts_of(read_config(words.run, overrides), words.device)
    print(json_text({"run": words.run} | describe_parts(found), indent=2) if words.json else format_parts(found))
    return 1 if any(part.missing for part in found) else 0


VERBS = (
    Verb(
        "fetch",
        "download weights: a backbone, a grounder, the judges, released SAEs",
        Fetch,
        _fetch,
        ("riebench fetch", "riebench fetch sdxl-turbo grounding-dino+sam2 clip-vit-l-14"),
    ),
    Verb(
        "doctor",
        "what this machine has, which weights are there, what would fit, and what a run is short of",
        Doctor,
        _doctor,
        ("riebench doctor --json", "riebench doctor --run quickstart --backbone sdxl-turbo@4"),
        overrides=(RunConfig, OVERRIDES),
    ),
)
