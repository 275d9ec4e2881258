"""Phrases to masks, and masks to cells, against slow loops."""

from __future__ import annotations

import pytest
import torch

from riebench.errors import UserError
from riebench.grounding import dilate, ground, mask_to_grid


class LeftHalf:
    """A grounder that finds "thing" in the left half and "foreground" in the top row."""

    def masks(self, images_bchw, phrases):
        b, _, h, w = images_bchw.shape
        out = torch.zeros(b, h, w, dtype=torch.bool)
        for i, phrase in enumerate(phrases):
            if phrase == "thing":
                out[i, :, : w // 2] = True
            elif phrase == "foreground":
                out[i, 0] = True
        return out


def test_phrases():
    images = torch.zeros(5, 3, 4, 4)
    masks = ground(LeftHalf(), images, ["thing", "not thing", "everything", "background", "foreground"])
    left = torch.zeros(4, 4, dtype=torch.bool)
    left[:, :2] = True
    top = torch.zeros(4, 4, dtype=torch.bool)
    top[0] = True
    for mask, expected in zip(masks, (left, ~left, torch.ones_like(left), ~top, top), strict=True):
        assert torch.equal(mask, expected)


@pytest.mark.parametrize("size", [64, 512])
def test_touched_is_any_pixel_of_the_cell_after_a_scaled_square_dilation(size):
    generator = torch.Generator().manual_seed(size)
    reach, cell = {64: 2, 512: 15}[size], size // 8
    for _ in range(20):
        mask = torch.zeros(1, size, size, dtype=torch.bool)
        points = torch.randint(size, (3, 2), generator=generator)
        mask[0, points[:, 0], points[:, 1]] = True
        expected = torch.zeros(8, 8, dtype=torch.bool)
        for row in range(8):
            for col in range(8):
                for y, x in points.tolist():
                    dy = max(row * cell - y, y - (row + 1) * cell + 1, 0)
                    dx = max(col * cell - x, x - (col + 1) * cell + 1, 0)
                    expected[row, col] |= max(dy, dx) <= reach
        assert torch.equal(mask_to_grid(mask, (8, 8), "touched")[0], expected)


def test_half_counts_half_of_the_cell():
    mask = torch.zeros(1, 8, 8, dtype=torch.bool)
    mask[0, :4, :2] = True  # exactly half of the first cell
    mask[0, :4, 4:5] = True  # a quarter of the second
    assert mask_to_grid(mask, (2, 2), "half")[0].tolist() == [[True, False], [False, False]]


def test_empty_stays_empty_and_full_stays_full():
    for rule in ("touched", "half"):
        assert not mask_to_grid(torch.zeros(1, 64, 64, dtype=torch.bool), (8, 8), rule).any()
        assert mask_to_grid(torch.ones(1, 64, 64, dtype=torch.bool), (8, 8), rule).all()
    assert torch.equal(dilate(torch.eye(3, dtype=torch.bool)[None], 0)[0], torch.eye(3, dtype=torch.bool))
    with pytest.raises(UserError, match="touched"):
        mask_to_grid(torch.ones(1, 8, 8, dtype=torch.bool), (2, 2), "most")
