"""The regions of a case: where its two images may change (protocol §4)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from riebench.core.batches import fixed_batches
from riebench.edits.edit import Edit, region_of
from riebench.regions.grounders import Grounder
from riebench.regions.grounding import ground, published_cells
from riebench.regions.masks import mask_to_grid

AT_ONCE = 8  # images that a grounder reads

#: (Grounder, images `[b, 3, h, w]`, a phrase for each, grid) -> masks `[b, h, w]` (bool).
Look = Callable[[Grounder, Tensor, Sequence[str], tuple[int, int]], Tensor]


def masks_of(grounder: Grounder, images_bchw: Tensor, phrases: Sequence[str], _grid: tuple[int, int]) -> Tensor:
    """Returns what the grounder finds, pixel by pixel (`ground`)."""
    return ground(grounder, images_bchw, phrases)


def whole_cells(grounder: Grounder, images_bchw: Tensor, phrases: Sequence[str], grid: tuple[int, int]) -> Tensor:
    """Returns the cells that the published code finds (`published_cells`), blown up to the images' size."""
    cells = published_cells(grounder, images_bchw, phrases, grid)
    return F.interpolate(cells[:, None].float(), images_bchw.shape[-2:], mode="nearest")[:, 0] > 0


def find_regions(
    grounder: Grounder, cases: Sequence[tuple[Edit, Tensor, Tensor]], grid: tuple[int, int], look: Look = masks_of
) -> list[Tensor]:
    """Returns the regions `[2, height, width]` (bool) in the original and in the edited image of each (edit, original,
    edited). Where a category has one region on both images (`Category.region`), both are that one.

    Images are `[3, height, width]`, of 8 bits in [0, 1]. grid: cells (high, wide) of the blocks, for `look`.
    """
    edits, originals, edited = zip(*cases, strict=True)
    found_o = _found(grounder, originals, [edit.original_region for edit in edits], look, grid)
    found_e = _found(grounder, edited, [edit.edited_region for edit in edits], look, grid)
    return [
        torch.stack({"original": (o, o), "edited": (e, e)}.get(region_of(edit.category), (o, e)))
        for edit, o, e in zip(edits, found_o, found_e, strict=True)
    ]


class Regions:
    """Finds where the images of cases may change, by one grounder and one rule for cells."""

    def __init__(self, grounder: Grounder, look: Look, mask_rule: str) -> None:
        self.grounder, self.look, self.mask_rule = grounder, look, mask_rule

    def find(self, cases: Sequence[tuple[Edit, Tensor, Tensor]], grid: tuple[int, int]) -> list[Tensor]:
        """Returns the regions of each case, as `find_regions` does."""
        return find_regions(self.grounder, cases, grid, self.look)

    def cells(self, region_hw: Tensor, grids: Mapping[str, tuple[int, int]]) -> dict[str, Tensor]:
        """Returns block -> the cells `[cells]` (bool) of a region."""
        found = {grid: region_cells(region_hw, grid, self.mask_rule) for grid in dict.fromkeys(grids.values())}
        return {block: found[grid] for block, grid in grids.items()}


def region_cells(region_hw: Tensor, grid: tuple[int, int], mask_rule: str) -> Tensor:
    """Returns the cells `[cells]` (bool), in reading order, of a region as `find_regions` gives it.

    A region of whole cells, which the rule "published" goes with, is read by the half of each cell.
    """
    return mask_to_grid(region_hw[None], grid, "half" if mask_rule == "published" else mask_rule)[0].flatten()


def _found(
    grounder: Grounder, images: Sequence[Tensor], phrases: Sequence[str], look: Look, grid: tuple[int, int]
) -> list[Tensor]:
    found: list[Tensor] = []
    for batch, count in fixed_batches(list(zip(images, phrases, strict=True)), AT_ONCE):
        shown, named = zip(*batch, strict=True)
        found += look(grounder, torch.stack(shown), named, grid)[:count].cpu()
    return found
