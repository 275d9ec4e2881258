"""This is the grammar of region phrases: from a text to what it asks for. It imports no torch."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from riebench.core.errors import UserError
from riebench.core.files import named_path

_NOT = re.compile(r"(~|not(?=\s|$))\s*", re.IGNORECASE)
_SEPARATOR = re.compile(r",|\s\.(?=\s|$)")
_BACKGROUND = re.compile(r"\bbackground\b", re.IGNORECASE)


@dataclass(frozen=True)
class Phrase:
    """A phrase says what a region is asked for. Neither nouns nor a file: everything, or with `complement` nothing."""

    nouns: tuple[str, ...] = ()
    """What the grounder is asked for; all that is found counts."""
    file: Path | None = None
    """A mask given by the user."""
    complement: bool = False
    """Whether the region is where all that is not."""


def parse_phrase(text: str) -> Phrase:
    """Returns the phrase in a text: `everything` (`#everything`), `background`, `mask:FILE`, nouns, or `not X` (`~X`)
    of these.

    Nouns are separated by commas or " . ", and may be several words each. `background` is what is not "foreground".
    Raises `UserError` for a phrase that names nothing.
    """
    rest, complement = text.strip(), False
    while negation := _NOT.match(rest):
        rest, complement = rest[negation.end() :], not complement
    if rest.lower() in ("everything", "#everything"):
        return Phrase(complement=complement)
    if rest.lower() == "background":
        return Phrase(("foreground",), complement=not complement)
    if rest.startswith("mask:"):
        if not rest.removeprefix("mask:").strip():
            raise UserError(f"the region phrase {text!r} names no file", remedy="write mask:FILE")
        return Phrase(file=named_path(rest.removeprefix("mask:").strip()), complement=complement)
    nouns = tuple(noun.strip() for noun in _SEPARATOR.split(rest) if noun.strip(" ."))
    if not nouns:
        raise UserError(f"the region phrase {text!r} names nothing", remedy="name what to look for, or `everything`")
    return Phrase(nouns, complement=complement)


def mask_files(text: str) -> tuple[Path, ...]:
    """Returns the files whose content decides a phrase's region. Raises `UserError` as `parse_phrase` does."""
    file = parse_phrase(text).file
    return () if file is None else (file,)


def published_phrase(text: str) -> Phrase:
    """Returns the phrase as the published code reads it: one with the word "background" is all but the foreground."""
    phrase = parse_phrase(text)
    return Phrase(("foreground",), complement=True) if phrase.nouns and _BACKGROUND.search(text) else phrase
