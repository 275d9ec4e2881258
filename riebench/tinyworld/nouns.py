"""What tinyworld's grounder can be asked for. Imports no torch."""

from __future__ import annotations

from riebench.core.errors import UserError, did_you_mean
from riebench.tinyworld.scenes import ACCESSORIES, SHAPES

#: What a pixel can be: the background, the object, or a kind of accessory.
CLASSES = ("background", "object", *ACCESSORIES[1:])
#: Noun -> the classes it covers. Every shape noun means the object, whatever its shape.
NOUNS: dict[str, tuple[str, ...]] = {
    **{shape: ("object",) for shape in SHAPES},
    "object": ("object",),
    **{kind: (kind,) for kind in CLASSES[2:]},
    "foreground": CLASSES[1:],
}


def phrase_noun(phrase: str) -> str:
    """Returns the last word of the phrase that is one of `NOUNS`. Raises `UserError` where there is none."""
    words = phrase.lower().split()
    for word in reversed(words):
        if word in NOUNS:
            return word
    raise UserError(
        f"tinyworld's grounder knows no noun of the phrase {phrase!r}"
        + next((hint for word in reversed(words) if (hint := did_you_mean(word, NOUNS))), ""),
        remedy=f"use one of {', '.join(NOUNS)}",
    )
