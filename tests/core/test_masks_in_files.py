"""Masks in the ways that people save them, against the shape that was drawn."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from riebench.core.errors import UserError
from riebench.core.pictures import mask_pixels
from riebench.edits.checks import check_edits
from riebench.edits.edit import Edit

CASES = Path(__file__).parents[1] / "data" / "masks"
SHAPE = np.zeros((6, 5), dtype=bool)
SHAPE[1:4, 2:] = True
WHITE, BLACK = np.full(SHAPE.shape, 255, np.uint8), np.zeros(SHAPE.shape, np.uint8)
LIGHT = np.where(SHAPE, WHITE, BLACK)


def channels(*arrays: np.ndarray) -> Image.Image:
    return Image.fromarray(np.stack(arrays, axis=-1))


def in_palette(background: tuple[int, ...], shape: tuple[int, ...]) -> Image.Image:
    image = Image.fromarray(SHAPE.astype(np.uint8)).convert("P")
    image.putpalette([*background, *shape] + [0] * (3 * 254))
    return image


SAVED = {
    "black and white": (Image.fromarray(SHAPE), "png"),
    "grey": (Image.fromarray(LIGHT), "png"),
    "grey of 0 and 1": (Image.fromarray(SHAPE.astype(np.uint8)), "png"),
    "colours of 0 and 1": (channels(*[SHAPE.astype(np.uint8)] * 3), "png"),
    "soft edges": (Image.fromarray(np.where(SHAPE, 128, 127).astype(np.uint8)), "png"),
    "colours": (channels(LIGHT, LIGHT, LIGHT), "png"),
    "yellow on blue": (channels(LIGHT, LIGHT, 255 - LIGHT), "png"),
    "16 bits": (Image.fromarray(LIGHT.astype(np.uint16) * 257), "png"),
    "16 bits of dark and light": (Image.fromarray(np.where(SHAPE, 32768, 32767).astype(np.uint16)), "png"),
    "16 bits of 0 and 1": (Image.fromarray(SHAPE.astype(np.uint16)), "png"),
    "16 bits of 0 and 255": (Image.fromarray(LIGHT.astype(np.uint16)), "png"),
    "numbers of 0 to 1": (Image.fromarray(SHAPE.astype(np.float32)), "tiff"),
    "numbers of 0 to 255": (Image.fromarray(LIGHT.astype(np.float32)), "tiff"),
    "palette of white on black": (in_palette((0, 0, 0), (255, 255, 255)), "png"),
    "palette of green on navy": (in_palette((0, 0, 90), (0, 255, 0)), "gif"),
    "JPEG": (Image.fromarray(LIGHT), "jpg"),
    "white with its shape in alpha": (channels(WHITE, WHITE, WHITE, LIGHT), "png"),
    "grey white with its shape in alpha": (channels(WHITE, LIGHT), "png"),
    "alpha that is solid": (channels(LIGHT, LIGHT, LIGHT, WHITE), "png"),
    "alpha that is nearly solid": (channels(LIGHT, LIGHT, LIGHT, WHITE - 100), "png"),
    "the same shape in both": (channels(LIGHT, LIGHT, LIGHT, LIGHT), "png"),
    "black that is transparent": (channels(LIGHT, LIGHT, LIGHT, np.where(SHAPE, 200, 0).astype(np.uint8)), "png"),
}


@pytest.mark.parametrize("name", SAVED)
def test_a_mask_is_its_shape_in_whatever_way_it_was_saved(tmp_path, name):
    image, suffix = SAVED[name]
    path = tmp_path / f"mask.{suffix}"
    image.save(path, **({"quality": 100} if suffix == "jpg" else {}))
    np.testing.assert_array_equal(mask_pixels(path, SHAPE.shape), SHAPE)
    inverted = tmp_path / "inverted.png"
    Image.fromarray(~SHAPE).save(inverted)
    np.testing.assert_array_equal(mask_pixels(inverted), ~mask_pixels(path))


def test_a_palette_with_a_transparent_colour_has_its_shape_there(tmp_path):
    in_palette((255, 255, 255), (255, 255, 255)).save(tmp_path / "mask.png", transparency=0)
    np.testing.assert_array_equal(mask_pixels(tmp_path / "mask.png"), SHAPE)


def test_the_shape_of_a_white_picture_lies_in_its_alpha_channel():
    plain = np.array(Image.open(CASES / "plain.png")) > 127
    assert 0 < plain.sum() < plain.size
    for name in ("plain", "alpha_white"):
        np.testing.assert_array_equal(mask_pixels(CASES / f"{name}.png", (64, 64)), plain)


def test_a_full_mask_is_the_whole_picture(tmp_path):
    Image.fromarray(WHITE).save(tmp_path / "mask.png")
    assert mask_pixels(tmp_path / "mask.png").all()


def claiming(width: int, height: int) -> bytes:
    """A PNG of one pixel whose header says that it has more."""
    one = io.BytesIO()
    Image.new("1", (1, 1)).save(one, format="png")
    header = b"IHDR" + struct.pack(">II", width, height) + one.getvalue()[24:29]
    return one.getvalue()[:12] + header + struct.pack(">I", zlib.crc32(header)) + one.getvalue()[33:]


OTHER = np.roll(LIGHT, 2, axis=1)
REFUSED = {
    "empty": (Image.fromarray(BLACK), r"the mask is empty: no pixel of .*mask\.png is lighter than 127"),
    "dark": (Image.fromarray(LIGHT // 3), "the mask is empty: no pixel"),
    "dark of 16 bits": (Image.fromarray(LIGHT.astype(np.uint16) * 100), "the mask is empty: no pixel"),
    "a dark palette": (in_palette((0, 0, 0), (128, 0, 0)), "the mask is empty: no pixel"),
    "transparent": (channels(WHITE, WHITE, WHITE, BLACK), r"the mask is empty: .*mask\.png is transparent"),
    "black with a shape in alpha": (channels(BLACK, BLACK, BLACK, LIGHT), "one shape in its alpha channel and none in"),
    "black and transparent": (channels(BLACK, BLACK), "one shape in its alpha channel and none in its colours"),
    "a photograph with a hole": (channels(LIGHT, LIGHT, LIGHT, OTHER), "in its alpha channel and another in its"),
    "numbers with NaN": (Image.fromarray(np.where(SHAPE, np.nan, 0).astype(np.float32)), "it holds NaN"),
    "no picture": (b"no picture", r"mask\.png cannot be read: cannot identify"),
    "nothing": (b"", r"mask\.png cannot be read: cannot identify"),
    "a bomb": (claiming(60_000, 60_000), r"mask\.png cannot be read: Image size .3600000000 pixels. exceeds"),
    "a small bomb": (claiming(9_000, 9_000), r"mask\.png cannot be read: it has 9000 x 9000 pixels"),
    "a folder": (None, r"mask\.png cannot be read: Is a directory"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_mask_is_said_before_a_run_and_in_it(tmp_path, name):
    content, message = REFUSED[name]
    path = tmp_path / "mask.png"
    match content:
        case None:
            path.mkdir()
        case bytes():
            path.write_bytes(content)
        case _:
            content.save(path, format="tiff" if content.mode == "F" else "png")
    with pytest.raises(UserError, match=rf"{message}.* -> "):
        mask_pixels(path)
    edit = Edit("e", "change_colour", "a red boat", "a blue boat", f"mask:{path}", "boat")
    (problem,) = check_edits([edit])
    assert problem.field == "original_region" and problem.what.startswith("original_region 'mask:")
    assert problem.remedy


@pytest.mark.parametrize("size", [(5, 6), (6, 4), (12, 10)])
def test_a_mask_of_another_size_is_refused_before_it_is_decoded(tmp_path, size):
    path = tmp_path / "mask.png"
    Image.fromarray(LIGHT).save(path)
    path.write_bytes(path.read_bytes()[:60])  # its header alone
    with pytest.raises(UserError, match=rf"has 5 x 6 px, its image {size[1]} x {size[0]} px"):
        mask_pixels(path, size)


def test_a_truncated_mask_is_refused(tmp_path):
    path = tmp_path / "mask.png"
    Image.effect_noise((40, 40), 90).save(path)
    path.write_bytes(path.read_bytes()[:900])
    with pytest.raises(UserError, match=r"mask\.png cannot be read"):
        mask_pixels(path)
