"""What a run is to have: every result, by a key of all that decides it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from riebench.backbones import BLOCK_NAMES, Backbone, backbone_folder, blocks_text
from riebench.edits import Edit
from riebench.errors import UserError
from riebench.files import data_folder
from riebench.grounders import GROUNDERS, SHIPPED_WEIGHTS
from riebench.keys import digest
from riebench.methods import Method
from riebench.store import picture_path
from riebench.versions import code_of, code_version, file_sha256, folder_digest
from sae_models import index

if TYPE_CHECKING:
    from riebench.scoring import Pictures

MODE = "strict"
DTYPE = "float32"


@dataclass(frozen=True)
class Variant:
    """One setting of a run: a method on a subset of the blocks. Empty `blocks` stands for no block at all."""

    method: Method
    blocks: tuple[str, ...]


@dataclass(frozen=True)
class Wanted:
    """A result that a run is to have."""

    variant: Variant
    recipe: str
    """Key of all that decides the result but the code: backbone, edit, seed, method, dictionaries, blocks."""
    code: str
    """Version of the code that computes it."""
    image: str
    """Where its picture lies, relative to the run directory."""


@dataclass(frozen=True)
class Shared:
    """A picture that all results of a case share: one of the two images, or the regions in them."""

    recipe: str
    code: str
    image: str


@dataclass(frozen=True)
class Task:
    """A case and what is wanted of it."""

    edit: Edit
    seed: int
    original: Shared
    edited: Shared
    regions: Shared
    wanted: tuple[Wanted, ...]
    pictures: Pictures | None = None
    """The shared pictures, where they were made before and need not be made again."""

    @property
    def shared(self) -> tuple[Shared, ...]:
        return self.original, self.edited, self.regions


def block_subsets(blocks: Sequence[str] = BLOCK_NAMES) -> list[tuple[str, ...]]:
    """Every non-empty subset of the blocks, small ones first. The empty one is the original image."""
    return [subset for size in range(1, len(blocks) + 1) for subset in itertools.combinations(blocks, size)]


def plan_variants(methods: Sequence[Method], subsets_of: str) -> list[Variant]:
    """Each method on all blocks, and one method on every subset of them."""
    return [
        variant_of(method, subset)
        for method in methods
        for subset in (block_subsets() if method.name == subsets_of and method.sites else [BLOCK_NAMES])
    ]


def variant_of(method: Method, blocks: tuple[str, ...]) -> Variant:
    """A method on some blocks; one that adds nothing has no blocks."""
    return Variant(method, blocks if method.sites else ())


def plan(
    backbone: Backbone, cases: Sequence[tuple[Edit, int]], variants: Sequence[Variant], mask_rule: str
) -> list[Task]:
    """The tasks of a run, with the keys of what they make.

    Raises `UserError` where a method holds what cannot be part of a key, or weights are missing.
    """
    model = {
        "weights": folder_digest(backbone_folder(backbone)),
        "steps": backbone.steps,
        "guidance": backbone.guidance,
        "dtype": DTYPE,
    }
    weights = SHIPPED_WEIGHTS.get(backbone.grounder)
    common = {
        "backbone": backbone.name,
        "model": model,
        "grounder": [backbone.grounder, file_sha256(data_folder() / weights) if weights else ""],
        "mask_rule": mask_rule,
        "mode": MODE,
    }
    dictionaries = {block: _dictionary(backbone, block) for block in BLOCK_NAMES}
    code = digest([code_version(), code_of(GROUNDERS.get(backbone.grounder))])
    settings = []
    for variant in variants:
        words = {
            "method": variant.method,
            "settings": _settings(variant.method),
            "blocks": variant.blocks,
            "dictionaries": variant.blocks and dictionaries,
        }
        settings.append((variant, digest(words), digest([code, code_of(variant.method)])))
    return [_task(common, edit, seed, code, settings) for edit, seed in cases]


def _task(common: dict, edit: Edit, seed: int, code: str, settings: Sequence[tuple[Variant, str, str]]) -> Task:
    case = digest([common, asdict(edit), seed])
    shared, wanted = {}, []
    for name in ("original", "edited", "regions"):
        recipe = digest([case, name])
        shared[name] = Shared(recipe, code, picture_path(edit.id, seed, name, digest([recipe, code])))
    for variant, setting, version in settings:
        recipe = digest([case, setting])
        name = f"{variant.method.name}@{variant.method.strength:g}"
        blocks = f"-{blocks_text(variant.blocks)}" if variant.blocks else ""
        path = picture_path(edit.id, seed, name + blocks, digest([recipe, version]))
        wanted.append(Wanted(variant, recipe, version, path))
    return Task(edit, seed, **shared, wanted=tuple(wanted))


def _settings(method: Method) -> dict[str, object]:
    """A method's public attributes that are plain values, also those that only its class has."""
    values = {name: getattr(method, name) for name in dir(method) if not name.startswith("_")}
    return {name: value for name, value in values.items() if isinstance(value, bool | int | float | str)}


def _dictionary(backbone: Backbone, block: str) -> str:
    """sha256 of the dictionary that methods are given on a block; empty where there is none."""
    try:
        return index.find(backbone.dictionaries or backbone.name, block).sha256
    except UserError:
        return ""
