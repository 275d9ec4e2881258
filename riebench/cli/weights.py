"""Verbs of weights and of the machine that they are for: fetch, doctor."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

from riebench.cli.flags import Verb, word
from riebench.core.errors import UserError, did_you_mean


@dataclass(frozen=True, kw_only=True)
class Fetch:
    """Holds the words of `riebench fetch`."""

    names: tuple[str, ...] = word((), positional=True, metavar="name")
    """What to fetch; without a name, what there is."""


def _fetch(words: Fetch) -> None:
    from riebench.core.hub import fetch
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


@dataclass(frozen=True, kw_only=True)
class Doctor:
    """Holds the words of `riebench doctor`."""

    json: bool = False
    """Print JSON."""


def _doctor(words: Doctor) -> None:
    from riebench.doctor import examine, format_doctor

    found = examine()
    print(json.dumps(found, indent=2) if words.json else format_doctor(found))


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
        "what this machine has, which weights are there, what would fit",
        Doctor,
        _doctor,
        ("riebench doctor", "riebench doctor --json"),
    ),
)
