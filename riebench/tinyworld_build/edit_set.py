"""The tinyworld edit set: nine categories, each edit changing exactly one attribute of one scene.

Both prompts of every edit are combinations that no model of tinyworld was trained on.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from riebench.backbones.worlds import CHANGED
from riebench.core.claims import claim_folder
from riebench.edits.edit import CATEGORIES, Edit, write_edits
from riebench.tinyworld.captions import caption
from riebench.tinyworld.scenes import VALUES, Scene, sample_attributes

EDITS_PER_CATEGORY = 60
SEED = 20241022


def make_edits(category: str, count: int = EDITS_PER_CATEGORY) -> list[Edit]:
    """Returns the first `count` edits of a category: a pure function of its arguments."""
    rng = np.random.default_rng([SEED, list(CHANGED).index(category)])
    attribute = CHANGED[category]
    edits: list[Edit] = []
    used: set[Scene] = set()
    while len(edits) < count:
        original = Scene.from_indices(sample_attributes(rng, 1, "held_out")[0])
        # cycling through the wanted values keeps a category balanced
        wanted = VALUES[attribute][len(edits) % len(VALUES[attribute])]
        if category == "delete_object":
            original, wanted = original.with_(accessory=VALUES["accessory"][1 + len(edits) % 3]), "none"
        elif category == "add_object":
            original, wanted = original.with_(accessory="none"), VALUES["accessory"][1 + len(edits) % 3]
        edited = original.with_(**{attribute: wanted})
        if edited == original or original in used or not (original.held_out and edited.held_out):
            continue
        used.add(original)
        edits.append(_edit(category, len(edits), original, edited))
    return edits


def _edit(category: str, number: int, original: Scene, edited: Scene) -> Edit:
    attribute = CHANGED[category]
    before, after = getattr(original, attribute), getattr(edited, attribute)
    original_region, edited_region = {
        "add_object": (edited.accessory, edited.accessory),
        "delete_object": (original.accessory, original.accessory),
        "change_background": ("background", "background"),
        "change_style": ("everything", "everything"),
    }.get(category, (original.shape, edited.shape))
    return Edit(
        id=f"{category}-{number:02d}",
        category=category,
        original_prompt=caption(original),
        edited_prompt=caption(edited),
        original_region=original_region,
        edited_region=edited_region,
        instruction=f"{attribute}: {before} to {after}",
        tags={"attribute": attribute, "from": before, "to": after},
    )


def write_edit_set(folder: Path) -> list[Path]:
    """Writes one JSON-lines file a category; the same bytes every time. Raises `UserError` for a folder that holds
    something else."""
    folder = claim_folder(folder, "edit set of tinyworld")
    paths = []
    for category in CATEGORIES:
        path = folder / f"{category.name}.jsonl"
        write_edits(make_edits(category.name), path)
        paths.append(path)
    return paths
