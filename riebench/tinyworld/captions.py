"""The closed grammar of tinyworld captions, with an exact inverse: `parse(caption(scene)) == scene`.

<style> of a <pose> <colour> <material> <shape> [with a <face> face] [wearing <accessory>] <background>
"""

from __future__ import annotations

import numpy as np

from riebench.core.errors import UserError, did_you_mean
from riebench.tinyworld.scenes import COLOURS, MATERIALS, POSES, SHAPES, VALUES, Scene

CONTEXT_LENGTH = 24  # tokens that text encoders read: more than any caption has
STYLE_WORDS = {"flat": "flat poster", "sketch": "sketch", "pixel": "pixel mosaic", "crayon": "crayon drawing"}
FACE_WORDS = {"none": "", "happy": "with a happy face", "sad": "with a sad face"}
ACCESSORY_WORDS = {"none": "", "hat": "wearing a hat", "crown": "wearing a crown", "boots": "wearing brown boots"}
BACKGROUND_WORDS = {
    "sky": "in the sky",
    "meadow": "on a meadow",
    "night": "at night",
    "desert": "in the desert",
    "sea": "by the sea",
    "wall": "before a brick wall",
}


def caption(scene: Scene) -> str:
    """Returns the one caption of a scene, in lower case without punctuation."""
    words = [
        STYLE_WORDS[scene.style],
        f"of a {scene.pose} {scene.colour} {scene.material} {scene.shape}",
        FACE_WORDS[scene.content],
        ACCESSORY_WORDS[scene.accessory],
        BACKGROUND_WORDS[scene.background],
    ]
    return " ".join(part for part in words if part)


_PHRASES = (STYLE_WORDS, FACE_WORDS, ACCESSORY_WORDS, BACKGROUND_WORDS)
#: Every word a caption can hold, sorted: the vocabulary of the world's tokenizer.
WORDS = tuple(
    sorted(
        {word for table in _PHRASES for phrase in table.values() for word in phrase.split()}
        | {"of", "a", *POSES, *COLOURS, *MATERIALS, *SHAPES}
    )
)


def captions(attributes: np.ndarray) -> list[str]:
    """Returns the captions of attribute rows `[n, 8]`, indices as in `scenes.VALUES`."""
    return [caption(Scene.from_indices(row)) for row in attributes]


#: What a caption says in turn: attribute (None for a fixed word) -> phrase -> value; "" is what may be left out.
_SLOTS: tuple[tuple[str | None, dict[str, str]], ...] = (
    ("style", STYLE_WORDS),
    (None, {"of a": "of a"}),
    *((name, {value: value for value in VALUES[name]}) for name in ("pose", "colour", "material", "shape")),
    ("content", FACE_WORDS),
    ("accessory", ACCESSORY_WORDS),
    ("background", BACKGROUND_WORDS),
)


def parse(text: str) -> Scene:
    """Returns the scene a caption describes. Raises `UserError` naming the first word that does not fit the grammar,
    and what could stand there."""
    words = text.lower().split()
    unknown = next((word for word in words if word not in WORDS), None)
    if unknown is not None:
        raise UserError(
            f"the word {unknown!r} is not in tinyworld's vocabulary{did_you_mean(unknown, WORDS)}",
            remedy=f"write it like {caption(Scene())!r}; the words are {', '.join(WORDS)}",
        )
    found, rest = {}, " ".join(words) + " "
    for name, table in _SLOTS:
        phrase = next((phrase for phrase in table.values() if phrase and rest.startswith(phrase + " ")), "")
        if not phrase and "" not in table.values():
            raise _misplaced(text, rest, name or "'of a'", table)
        rest = rest.removeprefix(phrase + " ") if phrase else rest
        if name:
            found[name] = next(value for value, known in table.items() if known == phrase)
    if rest:
        raise _misplaced(text, rest, "end", {})
    return Scene(**found)


def _misplaced(text: str, rest: str, wanted: str, table: dict[str, str]) -> UserError:
    word = rest.split()[0] if rest.strip() else ""
    seen = f"{word!r} stands" if word else "nothing stands"
    allowed = f"one of {', '.join(repr(phrase) for phrase in table.values())}" if table else "nothing more"
    return UserError(
        f"in {text!r} {seen} where the {wanted} should be", remedy=f"put {allowed} there, as in {caption(Scene())!r}"
    )
