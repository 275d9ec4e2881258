"""Grounding: a region phrase and an image -> a mask on the image, then on a block's grid."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from riebench.core.errors import UserError, did_you_mean
from riebench.regions.grounders import MASK_RULES, Grounder

DILATION_PX, DILATION_REFERENCE_PX = 15, 512  # protocol §4
BLUR_REACH_PX = 15  # the published blur: 31 taps, all positive, whatever the image's size
LANCZOS_TAPS = 8
_NOT = re.compile(r"(~|not(?=\s|$))\s*", re.IGNORECASE)
_SEPARATOR = re.compile(r",|\s\.(?=\s|$)")


@dataclass(frozen=True)
class Phrase:
    """What a region phrase asks for. Neither nouns nor a file: everything, or with `complement` nothing."""

    nouns: tuple[str, ...] = ()
    """What the grounder is asked for; all that is found counts."""
    file: Path | None = None
    """A mask given by the user."""
    complement: bool = False
    """Whether the region is where all that is not."""


def parse_phrase(text: str) -> Phrase:
    """The phrase in a text: `everything` (`#everything`), `background`, `mask:FILE`, nouns, or `not X` (`~X`) of these.

    Nouns are separated by commas or " . ", and may be several words each. `background` is what is not "foreground".
    Raises `UserError` for a phrase that names nothing.
    """
    rest, complement = text.strip(), False
    while negation := _NOT.match(rest):
        rest, complement = rest[negation.end() :], not complement
    if rest.lower() in ("everything", "#everything"):
        return Phrase(complement=complement)
    if rest.lower() == "background":
        return Phrase(("foreground",), complement=not complement)
    if rest.startswith("mask:"):
        if not rest.removeprefix("mask:").strip():
            raise UserError(f"the region phrase {text!r} names no file", remedy="write mask:FILE")
        return Phrase(file=Path(rest.removeprefix("mask:").strip()), complement=complement)
    nouns = tuple(noun.strip() for noun in _SEPARATOR.split(rest) if noun.strip(" ."))
    if not nouns:
        raise UserError(f"the region phrase {text!r} names nothing", remedy="name what to look for, or `everything`")
    return Phrase(nouns, complement=complement)


def mask_files(text: str) -> tuple[Path, ...]:
    """The files whose content decides a phrase's region. Raises `UserError` as `parse_phrase` does."""
    file = parse_phrase(text).file
    return () if file is None else (file,)


def ground(grounder: Grounder, images_bchw: Tensor, phrases: Sequence[str]) -> Tensor:
    """Masks `[b, h, w]` (bool) of region phrases (`parse_phrase`): all detections of a phrase united.

    The grounder sees only the images whose phrase has nouns, in a batch filled up to b. Raises `UserError` for a
    phrase that cannot be read, for a mask file of another size than its image, and where the grounder does.
    """
    parsed = [parse_phrase(phrase) for phrase in phrases]
    found = zip(parsed, _detections(grounder, images_bchw, parsed), strict=True)
    return torch.stack([masks.any(dim=0) ^ phrase.complement for phrase, masks in found])


def published_cells(grounder: Grounder, images_bchw: Tensor, phrases: Sequence[str], grid: tuple[int, int]) -> Tensor:
    """Cells `[b, *grid]` (bool) of region phrases as the published code finds them.

    Each detection goes to the grid on its own (`_published_grid`), then they are united; complements are taken on the
    grid, and a phrase with the word "background" is the complement of "foreground". Without a detection there is no
    cell, also for complements. Raises as `ground` does.
    """
    parsed = [_published_phrase(phrase) for phrase in phrases]
    cells = []
    for phrase, masks in zip(parsed, _detections(grounder, images_bchw, parsed), strict=True):
        masks = masks[masks.any(dim=2).any(dim=1)]
        cells.append(_published_grid(masks, grid).any(dim=0) ^ (phrase.complement and len(masks) > 0))
    return torch.stack(cells)


def _published_phrase(text: str) -> Phrase:
    phrase = parse_phrase(text)
    if phrase.nouns and re.search(r"\bbackground\b", text, re.IGNORECASE):
        return Phrase(("foreground",), complement=True)
    return phrase


def _detections(grounder: Grounder, images_bchw: Tensor, phrases: Sequence[Phrase]) -> list[Tensor]:
    """For each image the masks `[n, h, w]` (bool) that its phrase unites."""
    if len(phrases) != len(images_bchw):
        raise ValueError(f"{len(images_bchw)} images want as many phrases, got {len(phrases)}")
    size = tuple(images_bchw.shape[-2:])
    asked = [i for i, phrase in enumerate(phrases) if phrase.nouns]
    rows = asked + asked[-1:] * (len(phrases) - len(asked))  # one size, so that a mask does not depend on its batch
    answers = grounder.detections(images_bchw[rows], [phrases[i].nouns for i in rows]) if asked else []
    found = dict(zip(asked, answers[: len(asked)], strict=True))
    for i, phrase in enumerate(phrases):
        if phrase.file is not None:
            found[i] = _read_mask(phrase.file, size)[None].to(images_bchw.device)
        elif not phrase.nouns:
            found[i] = torch.ones(1, *size, dtype=torch.bool, device=images_bchw.device)
    return [found[i] for i in range(len(phrases))]


def _read_mask(path: Path, size: tuple[int, int]) -> Tensor:
    """Mask `[h, w]` (bool) of an image file: where it is lighter than 127 of 255. See `ground` for errors."""
    try:
        with Image.open(path) as image:
            grey = np.array(image.convert("L"))
    except OSError as error:
        raise UserError(f"the mask {path} cannot be read: {error}", remedy="check the path and the file") from error
    if grey.shape != size:
        raise UserError(
            f"the mask {path} has {grey.shape[1]} x {grey.shape[0]} px, its image {size[1]} x {size[0]} px",
            remedy="give a mask of the image's size",
        )
    return torch.from_numpy(grey > 127)


def dilate(mask_bhw: Tensor, pixels: int) -> Tensor:
    """Square dilation of boolean masks by `pixels` to every side (Chebyshev distance)."""
    if pixels < 1:
        return mask_bhw
    size = 2 * pixels + 1
    tall = F.max_pool2d(mask_bhw[:, None].float(), (size, 1), stride=1, padding=(pixels, 0))
    return F.max_pool2d(tall, (1, size), stride=1, padding=(0, pixels))[:, 0] > 0


def mask_to_grid(mask_bhw: Tensor, grid: tuple[int, int], rule: str = "touched") -> Tensor:
    """Cells `[b, *grid]` (bool) of image masks (protocol §4).

    touched: any pixel of the cell, after a square dilation of 15 px at 512 px, scaled to the image's height;
    half: at least 50 % of the cell's pixels, without dilation;
    published: what the published code's blur and OpenCV's Lanczos resize leave above 0. The blur is a square dilation
    of 15 px at any size; the resize weighs the 8 x 8 pixels around the cell's centre, some of them negatively. At
    32 px a cell that lies between "any pixel of the cell's inner 24 x 24" and "any pixel, after 3 px of dilation".
    Raises `UserError` for another rule.
    """
    if rule == "touched":
        return _any_pixel(dilate(mask_bhw, round(DILATION_PX * mask_bhw.shape[-2] / DILATION_REFERENCE_PX)), grid)
    if rule == "half":
        return F.adaptive_avg_pool2d(mask_bhw[:, None].float(), grid)[:, 0] >= 0.5
    if rule == "published":
        return _lanczos(dilate(mask_bhw, BLUR_REACH_PX).float(), grid) > 0
    raise UserError(
        f"unknown mask rule {rule!r}{did_you_mean(rule, MASK_RULES)}", remedy=f"use one of {', '.join(MASK_RULES)}"
    )


def _any_pixel(mask_bhw: Tensor, grid: tuple[int, int]) -> Tensor:
    return F.adaptive_max_pool2d(mask_bhw[:, None].float(), grid)[:, 0] > 0


def _published_grid(masks_nhw: Tensor, grid: tuple[int, int]) -> Tensor:
    """Cells `[n, *grid]` of detections that are not empty: the rule "published", with the published code's repair.

    A detection that has no cell gets every cell that it has a pixel in. (The published code also asks that it fills no
    cell whole; but then the resize would see that cell.)
    """
    cells = mask_to_grid(masks_nhw, grid, "published")
    lost = ~cells.flatten(1).any(dim=1)
    return torch.where(lost[:, None, None], _any_pixel(masks_nhw, grid), cells)


def _lanczos(values_bhw: Tensor, grid: tuple[int, int]) -> Tensor:
    """Values `[b, *grid]` of float32 images as OpenCV's `resize` with `INTER_LANCZOS4` gives them."""
    for dim, cells in ((2, grid[1]), (1, grid[0])):
        taps, weights = _lanczos_taps(values_bhw.shape[dim], cells)
        near = values_bhw.movedim(dim, -1)[..., taps.to(values_bhw.device)]
        values_bhw = (near * weights.to(near)).sum(dim=-1).movedim(-1, dim)
    return values_bhw


def _lanczos_taps(pixels: int, cells: int) -> tuple[Tensor, Tensor]:
    """For each cell along one axis the pixels it is made of, and their weights; each `[cells, 8]`.

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
