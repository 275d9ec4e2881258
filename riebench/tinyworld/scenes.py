"""What a tinyworld scene can be: its attributes, its layouts, and which of them are kept out of training.

A scene is one object. Its eight attributes are what a caption says; its layout (place and size) is what a caption
does not say, and what the starting noise decides.
"""

from __future__ import annotations

import hashlib
import itertools
from dataclasses import asdict, dataclass, fields, replace

import numpy as np

from riebench.core.errors import UserError, did_you_mean

SHAPES = ("circle", "square", "triangle", "star", "heart", "cross")
COLOURS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink")
MATERIALS = ("plain", "striped", "dotted", "checkered")
POSES = ("standing", "leaning", "stretched", "crouching")
CONTENTS = ("none", "happy", "sad")
ACCESSORIES = ("none", "hat", "crown", "boots")
BACKGROUNDS = ("sky", "meadow", "night", "desert", "sea", "wall")
STYLES = ("flat", "sketch", "pixel", "crayon")

#: Attribute name -> its values, in the order of the columns of an attribute array.
VALUES: dict[str, tuple[str, ...]] = {
    "shape": SHAPES,
    "colour": COLOURS,
    "material": MATERIALS,
    "pose": POSES,
    "content": CONTENTS,
    "accessory": ACCESSORIES,
    "background": BACKGROUNDS,
    "style": STYLES,
}
ATTRIBUTES = tuple(VALUES)

#: Layout name -> its values: the object's centre (column, in pixels) and its radius in pixels.
PLACES = {"left": 23, "centre": 32, "right": 41}
SIZES = {"small": 17, "large": 21}

#: Pairs (shape, colour) that no training scene shows: one per shape.
UNSEEN_PAIRS = tuple(zip(SHAPES, ("red", "orange", "yellow", "green", "blue", "purple"), strict=True))
HELD_OUT_SHARE = 10  # one combination of attributes in ten is kept out of training


@dataclass(frozen=True)
class Scene:
    """The eight attributes of one tinyworld picture. Raises `UserError` for a value that does not exist."""

    shape: str = "circle"
    colour: str = "red"
    material: str = "plain"
    pose: str = "standing"
    content: str = "none"
    accessory: str = "none"
    background: str = "sky"
    style: str = "flat"

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value not in VALUES[field.name]:
                raise UserError(
                    f"tinyworld has no {field.name} {value!r}{did_you_mean(value, VALUES[field.name])}",
                    remedy=f"use one of {', '.join(VALUES[field.name])}",
                )

    def indices(self) -> tuple[int, ...]:
        """Returns the place of each attribute's value in `VALUES`, in the order of `ATTRIBUTES`."""
        return tuple(VALUES[name].index(value) for name, value in asdict(self).items())

    @classmethod
    def from_indices(cls, indices) -> Scene:
        """Returns the scene of 8 `indices`."""
        return cls(**{name: VALUES[name][int(i)] for name, i in zip(ATTRIBUTES, indices, strict=True)})

    def with_(self, **changes: str) -> Scene:
        """Returns the scene with other values of some attributes. Raises `UserError` for a value that does not
        exist."""
        return replace(self, **changes)

    @property
    def unseen_pair(self) -> bool:
        """Returns whether shape and colour are one of the pairs never shown together in training."""
        return (self.shape, self.colour) in UNSEEN_PAIRS

    @property
    def held_out(self) -> bool:
        """Returns whether training never shows this combination of attributes (a stable hash, one in ten)."""
        return self.unseen_pair or _bucket("/".join(asdict(self).values())) == 0


def _bucket(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") % HELD_OUT_SHARE


def _held_out_table() -> np.ndarray:
    shape = tuple(len(values) for values in VALUES.values())
    table = np.zeros(shape, dtype=bool)
    for index, words in zip(np.ndindex(*shape), itertools.product(*VALUES.values()), strict=True):
        table[index] = _bucket("/".join(words)) == 0
    for pair in UNSEEN_PAIRS:
        table[SHAPES.index(pair[0]), COLOURS.index(pair[1])] = True
    return table


_HELD_OUT: np.ndarray | None = None


def sample_attributes(rng: np.random.Generator, count: int, split: str) -> np.ndarray:
    """Returns random attribute rows `[count, 8]` (int64), uniform over the scenes of a split.

    split: "train" (never held out), "held_out" (only held out), "unseen_pairs", or "all".
    """
    global _HELD_OUT
    if _HELD_OUT is None and split in ("train", "held_out"):
        _HELD_OUT = _held_out_table()
    sizes = [len(values) for values in VALUES.values()]
    rows: list[np.ndarray] = []
    found = 0
    while found < count:
        draw = np.stack([rng.integers(0, size, 4 * count + 16) for size in sizes], axis=1)
        if split == "train":
            draw = draw[~_HELD_OUT[tuple(draw.T)]]
        elif split == "held_out":
            draw = draw[_HELD_OUT[tuple(draw.T)]]
        elif split == "unseen_pairs":
            pair = rng.integers(0, len(UNSEEN_PAIRS), len(draw))
            draw[:, 0] = [SHAPES.index(UNSEEN_PAIRS[p][0]) for p in pair]
            draw[:, 1] = [COLOURS.index(UNSEEN_PAIRS[p][1]) for p in pair]
        elif split != "all":
            raise ValueError(f"unknown split {split!r}: use train, held_out, unseen_pairs or all")
        rows.append(draw)
        found += len(draw)
    return np.concatenate(rows)[:count]


def sample_layouts(rng: np.random.Generator, count: int) -> np.ndarray:
    """Returns random layout rows `[count, 2]` (int64): index into `PLACES`, index into `SIZES`."""
    return np.stack([rng.integers(0, len(PLACES), count), rng.integers(0, len(SIZES), count)], axis=1)
