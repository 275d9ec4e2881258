"""The regions of a case: where its two images may change (protocol §4)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from riebench.core.batches import fixed_batches
from riebench.edits.edit import Edit
from riebench.regions.grounding import ground, mask_to_grid, published_cells

AT_ONCE = 8  # images that a grounder reads


def find_regions(
    grounder, cases: Sequence[tuple[Edit, Tensor, Tensor]], mode: str, grid: tuple[int, int]
) -> list[Tensor]:
    """Regions `[2, height, width]` (bool) in the original and in the edited image of each (edit, original, edited).

    Images are `[3, height, width]`, of 8 bits in [0, 1]. In reference mode a region is whole cells of the grid: those
    that the published code finds, and where an object is deleted, both regions are the original image's: the object,
    and all but the object.
    """
    edits, originals, edited = zip(*cases, strict=True)
    reference = mode == "reference"
    deletes = [reference and edit.category == "delete_object" for edit in edits]
    found_o = _found(grounder, originals, [edit.original_region for edit in edits], reference, grid)
    found_e = _found(
        grounder,
        [o if deleted else e for o, e, deleted in zip(originals, edited, deletes, strict=True)],
        [f"not {e.original_region}" if d else e.edited_region for e, d in zip(edits, deletes, strict=True)],
        reference,
        grid,
    )
    return [
        torch.stack([mask_o, mask_e]) if deleted else _shared(edit, mask_o, mask_e)
        for edit, deleted, mask_o, mask_e in zip(edits, deletes, found_o, found_e, strict=True)
    ]


def region_cells(region_hw: Tensor, grid: tuple[int, int], mask_rule: str) -> Tensor:
    """Cells `[*grid]` (bool) of a region as `find_regions` gives it."""
    return mask_to_grid(region_hw[None], grid, "half" if mask_rule == "published" else mask_rule)[0]


def _found(
    grounder, images: Sequence[Tensor], phrases: Sequence[str], reference: bool, grid: tuple[int, int]
) -> list[Tensor]:
    look: Callable = _whole_cells if reference else lambda *asked, grid: ground(*asked)
    found: list[Tensor] = []
    for batch, count in fixed_batches(list(zip(images, phrases, strict=True)), AT_ONCE):
        shown, named = zip(*batch, strict=True)
        found += look(grounder, torch.stack(shown), named, grid=grid)[:count].cpu()
    return found


def _whole_cells(grounder, images_bchw: Tensor, phrases: Sequence[str], grid: tuple[int, int]) -> Tensor:
    cells = published_cells(grounder, images_bchw, phrases, grid)
    return F.interpolate(cells[:, None].float(), images_bchw.shape[-2:], mode="nearest")[:, 0] > 0


def _shared(edit: Edit, mask_o: Tensor, mask_e: Tensor) -> Tensor:
    """One region on both images where an object comes or goes, else each its own."""
    if edit.category == "add_object":
        mask_o = mask_e
    elif edit.category == "delete_object":
        mask_e = mask_o
    return torch.stack([mask_o, mask_e])
