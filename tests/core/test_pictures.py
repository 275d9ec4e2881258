"""Pictures: what an image is once it was written."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from riebench.core.pictures import eight_bits, from_array, rounded, to_array, unusable


def is_black(image):
    (reason,) = unusable(image[None], "the image")
    return "black" in reason


def test_black_is_what_a_file_would_hold():
    nothing = torch.zeros(3, 4, 4)
    assert is_black(nothing) and is_black(nothing + 0.0019)
    almost = nothing.clone()
    almost[1, 2, 3] = 1 / 255
    assert not is_black(almost) and not is_black(nothing + 0.5)


def test_each_image_of_a_batch_that_cannot_be_scored_says_why():
    images = torch.full((5, 3, 4, 4), 0.5)
    images[1, 0, 1, 1], images[2, 2, 0, 0], images[4, 1, 3, 3] = torch.nan, torch.inf, -torch.inf
    images[3] = 0
    found = unusable(images, "the image")
    assert [reason.partition(":")[0] for reason in found] == [
        "",
        "the image holds NaN",
        "the image holds NaN",
        "the image is black",
        "the image holds NaN",
    ]


def test_a_batch_is_rounded_as_each_image_is_written_and_read(tmp_path):
    images = torch.rand(3, 3, 5, 4, generator=torch.Generator().manual_seed(0)) * 1.2 - 0.1
    images[1, 0, 0, 0] = torch.nan
    made, arrays = rounded(images)
    for image, one, array in zip(images, made, arrays, strict=True):
        Image.fromarray(array).save(tmp_path / "image.png")
        assert torch.equal(from_array(np.array(Image.open(tmp_path / "image.png"))), one)
        expected = np.round(np.clip(np.nan_to_num(image.numpy()), 0, 1) * np.float32(255))
        assert np.array_equal(array, expected.transpose(1, 2, 0)) and np.array_equal(to_array(one), array)
    assert torch.equal(made, eight_bits(images.nan_to_num()))
