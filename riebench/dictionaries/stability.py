"""Dictionaries that differ in nothing but the seed of their training, and how far they have the same features."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from riebench.core.errors import UserError
from riebench.core.json_text import json_text
from sae_models import index
from sae_models.comparison import stability

SEED = re.compile(r"\bseed\W{1,3}\d+")  # `"seed": 1` in JSON, and `seed=1` in an architecture as it is written there


@dataclass(frozen=True)
class Pair:
    """Two dictionaries of one block of one backbone."""

    a: index.Entry
    b: index.Entry
    root: Path | None
    """The folder of a's index, as in `index.open`."""
    other: Path | None
    """The other folder, where b lies there."""

    @property
    def partner(self) -> str:
        """b's name, after that of its folder where that is another."""
        return f"{self.other.resolve().name}/{self.b.name}" if self.other else self.b.name


def find_pairs(entries: Sequence[index.Entry], root: Path | None = None, other: Path | None = None) -> list[Pair]:
    """Returns all pairs of the entries with equal `training` but for its seeds; and with each entry those of the folder
    `other` of the same backbone, block, kind, k and size, whatever is known of their training.

    root: of the entries' index. Raises `UserError` where `other` has none of these, or is no folder of dictionaries.
    """
    pairs = [
        Pair(a, b, root, None)
        for a, b in itertools.combinations(entries, 2)
        if a.training and _shape(a) == _shape(b) and _unseeded(a) == _unseeded(b)
    ]
    if other is None:
        return pairs
    backbones = dict.fromkeys(entry.backbone for entry in entries)
    there = {entry.key: entry for backbone in backbones for entry in index.own_entries(other, backbone)}
    partners = [Pair(a, b, root, other) for a in entries for b in there.values() if _shape(a) == _shape(b)]
    if not partners:
        raise UserError(
            f"{other} has no dictionary of the same backbone, block, kind, k and size as one of the "
            f"{len(entries)} to compare it with",
            remedy="train some there with the settings of these and another seed, or leave --other out",
        )
    return pairs + partners


def compare_pairs(pairs: Sequence[Pair], device: torch.device | str = "cpu") -> list[dict[str, str | float]]:
    """Returns for each pair `block`, `name` and `partner`, and the fields of `Stability`. Raises `UserError` as
    `index.open`."""
    found = []
    for pair in pairs:
        a = index.open(pair.a, root=pair.root, device=str(device))
        b = index.open(pair.b, root=pair.other or pair.root, device=str(device))
        labels = {"block": pair.a.block, "name": pair.a.name, "partner": pair.partner}
        found.append(labels | asdict(stability(a, b, device)))
    return found


def _shape(entry: index.Entry) -> tuple:
    return entry.backbone, entry.block, entry.kind, entry.k, entry.num_features, entry.width


def _unseeded(entry: index.Entry) -> str:
    """Returns all that is known of a training but its seeds."""
    return SEED.sub("", json_text(entry.training, sort_keys=True))
