"""Pictures: what an image is once it was written."""

from __future__ import annotations

import torch

from riebench.core.pictures import is_black, unusable


def test_black_is_what_a_file_would_hold():
    nothing = torch.zeros(3, 4, 4)
    assert is_black(nothing) and is_black(nothing + 0.0019) and is_black(nothing * torch.nan)
    almost = nothing.clone()
    almost[1, 2, 3] = 1 / 255
    assert not is_black(almost) and not is_black(nothing + 0.5)


def test_an_image_that_cannot_be_scored_says_why():
    image = torch.full((3, 4, 4), 0.5)
    assert unusable(image, "the image") == ""
    image[0, 1, 1] = torch.nan
    assert unusable(image, "the image").startswith("the image holds NaN")
    assert unusable(torch.zeros(3, 4, 4), "it").startswith("it is black")
