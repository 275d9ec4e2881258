"""The closed grammar of tinyworld captions, with an exact inverse: `parse(caption(scene)) == scene`.

<style> of a <pose> <colour> <material> <shape> [with a <face> face] [wearing <accessory>] <background>
"""

from __future__ import annotations

import re

from riebench.errors import UserError, did_you_mean
from riebench.tinyworld.scenes import COLOURS, MATERIALS, POSES, SHAPES, Scene

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
    """The one caption of a scene, in lower case without punctuation."""
    words = [
        STYLE_WORDS[scene.style],
        f"of a {scene.pose} {scene.colour} {scene.material} {scene.shape}",
        FACE_WORDS[scene.content],
        ACCESSORY_WORDS[scene.accessory],
        BACKGROUND_WORDS[scene.background],
    ]
    return " ".join(part for part in words if part)


def _choice(name: str, words) -> str:
    return f"(?P<{name}>{'|'.join(re.escape(word) for word in words if word)})"


_GRAMMAR = re.compile(
    f"{_choice('style', STYLE_WORDS.values())} of a {_choice('pose', POSES)} {_choice('colour', COLOURS)} "
    f"{_choice('material', MATERIALS)} {_choice('shape', SHAPES)}(?: {_choice('content', FACE_WORDS.values())})?"
    f"(?: {_choice('accessory', ACCESSORY_WORDS.values())})? {_choice('background', BACKGROUND_WORDS.values())}"
)
_PHRASES = (STYLE_WORDS, FACE_WORDS, ACCESSORY_WORDS, BACKGROUND_WORDS)
#: Every word a caption can hold, sorted: the vocabulary of the world's tokenizer.
WORDS = tuple(
    sorted(
        {word for table in _PHRASES for phrase in table.values() for word in phrase.split()}
        | {"of", "a", *POSES, *COLOURS, *MATERIALS, *SHAPES}
    )
)


def parse(text: str) -> Scene:
    """The scene a caption describes. Raises `UserError` naming the first word that does not fit the grammar."""
    match = _GRAMMAR.fullmatch(" ".join(text.lower().split()))
    if match is None:
        unknown = next((word for word in text.lower().split() if word not in WORDS), None)
        if unknown is not None:
            problem = f"the word {unknown!r} is not in tinyworld's vocabulary{did_you_mean(unknown, WORDS)}"
        else:
            problem = f"the words of {text!r} are known but not in the order of the grammar"
        raise UserError(problem, remedy=f"write it like {caption(Scene())!r}; the words are {', '.join(WORDS)}")
    inverse = {
        name: {phrase: value for value, phrase in table.items()}
        for name, table in zip(("style", "content", "accessory", "background"), _PHRASES, strict=True)
    }
    found = {}
    for name, phrase in match.groupdict().items():
        found[name] = inverse[name][phrase or ""] if name in inverse else phrase
    return Scene(**found)
