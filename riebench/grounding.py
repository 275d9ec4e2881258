"""Grounding: a region phrase and an image -> a mask on the image, then on a block's grid."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from riebench.errors import UserError

DILATION_PX, DILATION_REFERENCE_PX = 15, 512  # the published blur + Lanczos, in effect (protocol §4)


def ground(grounder, images_bchw: Tensor, phrases: Sequence[str]) -> Tensor:
    """Masks `[b, h, w]` (bool) of region phrases: a noun, `everything`, `background`, `not <noun>`.

    `background` is the complement of the grounder's "foreground".
    """
    nouns = [_noun(phrase) for phrase in phrases]
    found = grounder.masks(images_bchw, [noun or "foreground" for noun in nouns])
    masks = []
    for phrase, noun, mask in zip(phrases, nouns, found, strict=True):
        if noun is None:
            mask = torch.ones_like(mask)
        elif phrase == "background" or phrase.startswith("not "):
            mask = ~mask
        masks.append(mask)
    return torch.stack(masks)


def _noun(phrase: str) -> str | None:
    if phrase == "everything":
        return None
    return "foreground" if phrase == "background" else phrase.removeprefix("not ")


def dilate(mask_bhw: Tensor, pixels: int) -> Tensor:
    """Square dilation of boolean masks by `pixels` to every side (Chebyshev distance)."""
    if pixels < 1:
        return mask_bhw
    size = 2 * pixels + 1
    return F.max_pool2d(mask_bhw[:, None].float(), size, stride=1, padding=pixels)[:, 0] > 0


def mask_to_grid(mask_bhw: Tensor, grid: tuple[int, int], rule: str = "touched") -> Tensor:
    """Cells `[b, *grid]` (bool) of image masks (protocol §4).

    touched: any pixel of the cell, after a square dilation of 15 px at 512 px, scaled to the image's height;
    half: at least 50 % of the cell's pixels, without dilation.
    """
    if rule == "touched":
        wide = dilate(mask_bhw, round(DILATION_PX * mask_bhw.shape[-2] / DILATION_REFERENCE_PX))
        return F.adaptive_max_pool2d(wide[:, None].float(), grid)[:, 0] > 0
    if rule == "half":
        return F.adaptive_avg_pool2d(mask_bhw[:, None].float(), grid)[:, 0] >= 0.5
    raise UserError(f"unknown mask rule {rule!r}", remedy="use 'touched' or 'half'")
