"""The published RIEBench list is 296 pairs derived from PIE-Bench (github wendlerc/RIEBench), a JSON list of items.

It carries no licence and is not shipped. Facts of its form: `editing_type_id` numbers the categories (protocol §4),
prompts mark their edited words with `[ ]`, regions are phrases for a detector.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from riebench.edits.edit import Edit
from riebench.edits.importers.items import (
    Imported,
    Refused,
    category_of,
    import_items,
    prompts_of,
    read_list,
    region_of,
    text_of,
)

#: category -> the side whose region counts for both images (protocol §4); the other may be empty
ONE_REGION = {"add_object": "editing_gsam_prompt", "delete_object": "original_gsam_prompt"}


def import_riebench(path: Path) -> Imported:
    """Returns the edits of a list of items with `id`, `editing_type_id`, `original_prompt`, `editing_prompt`,
    `editing_instruction`, `original_gsam_prompt` and `editing_gsam_prompt`; other keys are not looked at.

    Prompts keep their `[ ]`. `#everything` becomes `everything` and `~X` `not X`; "chain, star" stays, and is grounded
    as two nouns whose masks are united. Raises `UserError` where the file is no JSON list.
    """
    items = read_list(path, list, "the published list: a JSON list of items")
    return import_items(path, ((_name(item, i), item) for i, item in enumerate(items, start=1)), _edit)


def _name(item: object, number: int) -> str:
    said = item.get("id", "") if isinstance(item, Mapping) else ""
    return str(said) if isinstance(said, int | str) and str(said) else f"item {number}"


def _edit(name: str, item: Mapping[str, object]) -> Edit:
    if not isinstance(item.get("id"), int | str) or not str(item["id"]).strip():
        raise Refused("id", item.get("id", ""), "is missing")
    category = category_of(item)
    sides = ("original_gsam_prompt", "editing_gsam_prompt")
    only = ONE_REGION.get(category)
    phrases = {side: text_of(item, side, needed=side == only or only is None) for side in sides}
    original, edited = (region_of(side, phrases[side] or phrases[only or side]) for side in sides)
    instruction = text_of(item, "editing_instruction", needed=False)
    return Edit(name, category, *prompts_of(item), original, edited, instruction)
