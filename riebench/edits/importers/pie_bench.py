"""PIE-Bench is 700 photographs and drawings with prompt pairs and masks (github cure-lab/PnPInversion)."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from riebench.core import files
from riebench.edits.edit import Edit
from riebench.edits.importers.items import Imported, Refused, category_of, import_items, prompts_of, read_list, text_of

SIDE = 512
KEPT_AS_TAGS = ("image_path", "blended_word")


def import_pie_bench(path: Path, masks_folder: Path) -> Imported:
    """Returns the edits of a `mapping_file.json`, an object of items by id with `image_path`, `original_prompt`,
    `editing_prompt`, `editing_instruction`, `blended_word`, `editing_type_id` and `mask`.

    Both regions are the item's mask, written to `masks_folder/<id>.png`, 512 x 512, white where the picture may change.
    It was drawn on PIE-Bench's own picture: an image that is generated from the prompt alone has its things elsewhere.
    Prompts keep their `[ ]`; `image_path` and `blended_word` are kept as tags. Raises `UserError` where the file is no
    JSON object, and where a mask cannot be written.
    """
    items = read_list(path, dict, "PIE-Bench's mapping_file.json: an object of items by id")
    return import_items(path, items.items(), lambda name, item: _edit(name, item, Path(masks_folder)))


def decode_mask(runs: object, side: int = SIDE) -> np.ndarray:
    """Returns the mask `[side, side]` (bool) of run lengths [start, length, start, length, ...] over the rows strung
    together.

    A run that goes past the end is cut there, as the public decoder does. That decoder also sets the outermost rows and
    columns, to keep errors of annotation there out of its measurements; here a region is where features go, and that
    frame, widened as masks are, would take in every cell at the image's border: it is left out.
    Raises `ValueError` where the runs are no pairs of whole numbers, or begin outside the image.
    """
    if not isinstance(runs, Sequence) or isinstance(runs, str) or len(runs) % 2:
        raise ValueError("is no list of pairs of start and length")
    if not all(isinstance(number, int) and not isinstance(number, bool) for number in runs):
        raise ValueError("holds what is no whole number")
    flat: np.ndarray = np.zeros(side * side, dtype=bool)
    for start, length in zip(runs[::2], runs[1::2], strict=True):
        if not 0 <= start < flat.size or length < 0:
            raise ValueError(f"has the run {start}, {length}, which is not in {side} x {side} pixels")
        flat[start : start + length] = True
    return flat.reshape(side, side)


def _edit(name: str, item: Mapping[str, object], masks_folder: Path) -> Edit:
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise Refused("id", name, "cannot be the name of a file")
    category, prompts = category_of(item), prompts_of(item)
    instruction = text_of(item, "editing_instruction", needed=False)
    tags = {key: text_of(item, key, needed=False) for key in KEPT_AS_TAGS if key in item}
    try:
        mask = decode_mask(item.get("mask", []))
    except ValueError as error:
        raise Refused("mask", item["mask"], str(error)) from None
    if not mask.any():
        raise Refused("mask", item.get("mask", ""), "is empty")
    file = masks_folder / f"{name}.png"
    picture = io.BytesIO()
    Image.fromarray(np.where(mask, 255, 0).astype(np.uint8)).save(picture, format="PNG")
    files.write_bytes(file, picture.getvalue())
    return Edit(name, category, *prompts, f"mask:{file}", f"mask:{file}", instruction, tags)
