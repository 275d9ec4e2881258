"""Grounding: region phrases and images to masks on the images, or to cells as the published code finds them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from riebench.core.pictures import read_mask
from riebench.edits.phrases import Phrase, parse_phrase, published_phrase
from riebench.regions.grounders import Grounder
from riebench.regions.masks import any_pixel, mask_to_grid


def ground(grounder: Grounder, images_bchw: Tensor, phrases: Sequence[str]) -> Tensor:
    """Returns masks `[b, h, w]` (bool) of region phrases (`parse_phrase`): all detections of a phrase united.

    The grounder sees only the images whose phrase has nouns, in a batch filled up to b. Raises `UserError` for a
    phrase that cannot be read, for a mask file of another size than its image, and where the grounder does.
    """
    parsed = [parse_phrase(phrase) for phrase in phrases]
    found = zip(parsed, _detections(grounder, images_bchw, parsed), strict=True)
    return torch.stack([masks.any(dim=0) ^ phrase.complement for phrase, masks in found])


def published_cells(grounder: Grounder, images_bchw: Tensor, phrases: Sequence[str], grid: tuple[int, int]) -> Tensor:
    """Returns the cells `[b, *grid]` (bool) of region phrases as the published code finds them.

    Each detection goes to the grid on its own (`_published_grid`), then they are united; complements are taken on the
    grid, and a phrase with the word "background" is the complement of "foreground". Without a detection there is no
    cell, also for complements. Raises as `ground` does.
    """
    parsed = [published_phrase(phrase) for phrase in phrases]
    cells = []
    for phrase, masks in zip(parsed, _detections(grounder, images_bchw, parsed), strict=True):
        masks = masks[masks.any(dim=2).any(dim=1)]
        cells.append(_published_grid(masks, grid).any(dim=0) ^ (phrase.complement and len(masks) > 0))
    return torch.stack(cells)


def _detections(grounder: Grounder, images_bchw: Tensor, phrases: Sequence[Phrase]) -> list[Tensor]:
    """Returns for each image the masks `[n, h, w]` (bool) that its phrase unites."""
    if len(phrases) != len(images_bchw):
        raise ValueError(f"{len(images_bchw)} images want as many phrases, got {len(phrases)}")
    size = tuple(images_bchw.shape[-2:])
    asked = [i for i, phrase in enumerate(phrases) if phrase.nouns]
    rows = asked + asked[-1:] * (len(phrases) - len(asked))  # one size, so that a mask does not depend on its batch
    answers = grounder.detections(images_bchw[rows], [phrases[i].nouns for i in rows]) if asked else []
    found = dict(zip(asked, answers[: len(asked)], strict=True))
    for i, phrase in enumerate(phrases):
        if phrase.file is not None:
            found[i] = read_mask(phrase.file, size)[None].to(images_bchw.device)
        elif not phrase.nouns:
            found[i] = torch.ones(1, *size, dtype=torch.bool, device=images_bchw.device)
    return [found[i] for i in range(len(phrases))]


def _published_grid(masks_nhw: Tensor, grid: tuple[int, int]) -> Tensor:
    """Returns the cells `[n, *grid]` of detections that are not empty: the rule "published", with the published code's
    repair.

    A detection that has no cell gets every cell that it has a pixel in. (The published code also asks that it fills no
    cell whole; but then the resize would see that cell.)
    """
    cells = mask_to_grid(masks_nhw, grid, "published")
    lost = ~cells.flatten(1).any(dim=1)
    return torch.where(lost[:, None, None], any_pixel(masks_nhw, grid), cells)
