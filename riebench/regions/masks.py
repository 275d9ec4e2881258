"""Masks on an image, and the cells of a block's grid that they are (protocol §4)."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from riebench.core.errors import UserError, did_you_mean
from riebench.regions.grounders import MASK_RULES

DILATION_PX, DILATION_REFERENCE_PX = {"touched": 1, "wide": 15}, 512  # protocol §4
BLUR_REACH_PX = 15  # the published blur: 31 taps, all positive, whatever the image's size
LANCZOS_TAPS = 8


def dilate(mask_bhw: Tensor, pixels: int) -> Tensor:
    """Returns boolean masks dilated squarely by `pixels` to every side (Chebyshev distance)."""
    if pixels < 1:
        return mask_bhw
    tall = _any_of_window(F.pad(mask_bhw, (0, 0, pixels, pixels)), 2 * pixels + 1, dim=1)
    return _any_of_window(F.pad(tall, (pixels, pixels)), 2 * pixels + 1, dim=2)


def _any_of_window(mask: Tensor, size: int, dim: int) -> Tensor:
    """Returns whether any of `size` neighbours along a dimension is set, from every first one on that has them all.

    A window is two of half its size, which may overlap: so many steps as the size has binary digits.
    """
    width = 1
    while width < size:
        step = min(width, size - width)
        length = mask.shape[dim] - step
        mask = mask.narrow(dim, 0, length) | mask.narrow(dim, step, length)
        width += step
    return mask


def mask_to_grid(mask_bhw: Tensor, grid: tuple[int, int], rule: str = "touched") -> Tensor:
    """Returns the cells `[b, *grid]` (bool) of image masks (protocol §4).

    touched: any pixel of the cell, after a square dilation of 1 px at 512 px, scaled to the image's height: of all
    dilations the nearest to `published`;
    wide: the same after 15 px;
    half: at least 50 % of the cell's pixels, without dilation;
    published: what the published code's blur and OpenCV's Lanczos resize leave above 0. The blur is a square dilation
    of 15 px at any size; the resize weighs the 8 x 8 pixels around the cell's centre, some of them negatively. At
    32 px a cell that lies between "any pixel of the cell's inner 24 x 24" and "any pixel, after 3 px of dilation".
    Raises `UserError` for another rule.
    """
    if rule in DILATION_PX:
        return any_pixel(dilate(mask_bhw, round(DILATION_PX[rule] * mask_bhw.shape[-2] / DILATION_REFERENCE_PX)), grid)
    if rule == "half":
        return F.adaptive_avg_pool2d(mask_bhw[:, None].float(), grid)[:, 0] >= 0.5
    if rule == "published":
        return _lanczos(dilate(mask_bhw, BLUR_REACH_PX).float(), grid) > 0
    raise UserError(
        f"unknown mask rule {rule!r}{did_you_mean(rule, MASK_RULES)}", remedy=f"use one of {', '.join(MASK_RULES)}"
    )


def any_pixel(mask_bhw: Tensor, grid: tuple[int, int]) -> Tensor:
    """Returns the cells `[b, *grid]` (bool) in which a mask has any pixel."""
    return F.adaptive_max_pool2d(mask_bhw[:, None].float(), grid)[:, 0] > 0


def _lanczos(values_bhw: Tensor, grid: tuple[int, int]) -> Tensor:
    """Returns values `[b, *grid]` of float32 images as OpenCV's `resize` with `INTER_LANCZOS4` gives them."""
    for dim, cells in ((2, grid[1]), (1, grid[0])):
        taps, weights = _lanczos_taps(values_bhw.shape[dim], cells)
        near = values_bhw.movedim(dim, -1)[..., taps.to(values_bhw.device)]
        values_bhw = (near * weights.to(near)).sum(dim=-1).movedim(-1, dim)
    return values_bhw


def _lanczos_taps(pixels: int, cells: int) -> tuple[Tensor, Tensor]:
    """Returns for each cell along one axis the pixels it is made of, and their weights; each `[cells, 8]`.

    Lanczos with a = 4 at the distances of the 8 pixels around the cell's centre, however large the cell is, scaled to
    sum 1. Its factor sin(pi t) has the same size at all of them, so only its alternating sign is kept. Where a pixel
    lies on the centre (cells of odd size) it has all the weight; OpenCV leaves the others some 1e-30. Outside the
    image the edge is repeated.
    """
    centres = ((torch.arange(cells, dtype=torch.float64) + 0.5) * (pixels / cells) - 0.5).float()
    first = centres.floor() - (LANCZOS_TAPS // 2 - 1)
    taps = first[:, None] + torch.arange(LANCZOS_TAPS)
    distances = (centres[:, None] - taps).double()
    on_centre = distances == 0
    signs = torch.tensor([-1.0, 1.0], dtype=torch.float64).repeat(LANCZOS_TAPS // 2)
    weights = signs * (distances * math.pi / 4).sin() / distances**2
    weights = torch.where(on_centre.any(dim=1, keepdim=True), on_centre.double(), weights)
    weights = weights / weights.sum(dim=1, keepdim=True)
    return taps.long().clamp(0, pixels - 1), weights.float()
