"""Pictures and regions are tensors, arrays, PIL images and files; here is every way from one to another.

What is scored is what is written, so a picture is rounded to 8 bits before anything is done with it. Imports no torch
until a function needs it.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from riebench.core.errors import UserError
from riebench.core.picture_files import decoded

if TYPE_CHECKING:
    from torch import Tensor

#: What a mask is, as remedies say it.
WANTED = "give a picture of the generated image's size, white where the image may change, black elsewhere"


def eight_bits(images: Tensor) -> Tensor:
    """Returns float images in [0, 1], of any shape, as they are after they were written and read."""
    return _levels(images).div_(255)


def rounded(images_bchw: Tensor) -> tuple[Tensor, np.ndarray]:
    """Returns float images in [0, 1] as `eight_bits` does, and as arrays, uint8 `[b, h, w, 3]`; NaN becomes 0."""
    levels_bchw = _levels(images_bchw.nan_to_num())
    arrays_bhwc = levels_bchw.byte().permute(0, 2, 3, 1).contiguous().cpu().numpy()
    return levels_bchw.div_(255), arrays_bhwc


def _levels(images: Tensor) -> Tensor:
    """Returns the levels 0 to 255 of images in [0, 1]."""
    return images.clamp(0, 1).mul_(255).round_()


def unusable(images_bchw: Tensor, what: str) -> list[str]:
    """Returns for each image in [0, 1] why it cannot be scored; empty where it can. what: an image's name in that
    sentence.

    An image is black where no pixel is above 0 once rounded to 8 bits: what an autoencoder makes that overflowed, whose
    NaN become black in a file.
    """
    import torch

    flat = images_bchw.flatten(1)
    # a sum is not finite where a value is not; 255 times the largest value rounds to 0 where all do
    checks = torch.isfinite(flat.sum(dim=1)), (flat.amax(dim=1) * 255).round() > 0
    found = []
    for finite, seen in torch.stack(checks, dim=1).tolist():
        if not finite:
            found.append(f"{what} holds NaN: half precision overflowed; use dtype bfloat16 or float32")
        else:
            found.append("" if seen else f"{what} is black: the decoder overflowed; use dtype bfloat16 or float32")
    return found


def picture_digest(array_hwc: np.ndarray) -> bytes:
    """Returns what tells a picture of 8 bits from others."""
    return hashlib.sha256(repr(array_hwc.shape).encode() + array_hwc.tobytes()).digest()


def to_array(image_chw: Tensor) -> np.ndarray:
    """Returns uint8 `[h, w, 3]` of an image of 8 bits in [0, 1]."""
    return (image_chw * 255).round().byte().permute(1, 2, 0).contiguous().cpu().numpy()


def from_array(array_hwc: np.ndarray) -> Tensor:
    """Returns the image that `to_array` was given."""
    import torch

    return torch.from_numpy(array_hwc).permute(2, 0, 1).float() / 255


def to_picture(image_chw: Tensor) -> Image.Image:
    """Returns a PIL image of a float tensor `[3, h, w]` in [0, 1]."""
    return Image.fromarray(to_array(eight_bits(image_chw)))


def regions_to_array(regions_2hw: Tensor) -> np.ndarray:
    """Returns uint8 `[h, w]` of the regions in the original and in the edited image: 85 where only the original's is,
    170 the edited's, 255 both."""
    return (85 * regions_2hw[0].byte() + 170 * regions_2hw[1].byte()).cpu().numpy()


def regions_from_array(array_hw: np.ndarray) -> Tensor:
    """Returns the regions that `regions_to_array` was given, bool `[2, h, w]`."""
    import torch

    return torch.from_numpy(np.stack([array_hw & 1, array_hw & 2]) > 0)


def read_picture(path: Path) -> np.ndarray:
    """Returns the picture of a file, uint8 `[h, w, 3]`, or `[h, w]` of a grey one. Raises `UserError` where it is
    broken."""
    picture = decoded(path, "run the same command again: what is missing is made")
    return np.array(picture if picture.mode in ("L", "RGB") else picture.convert("RGB"))


def mask_pixels(path: Path, size: tuple[int, int] | None = None) -> np.ndarray:
    """Returns the mask `[h, w]` (bool) in the file of a picture: where it is lighter than half of its range.

    Half is 127 of 255, or of 65,535 in 16 bits; where no value is above 1, it is 0.5. A transparent pixel is none of
    the mask: where the picture is white all over, its shape is its alpha channel. size: (height, width) that it must
    have, if known. Raises `UserError` for a file that cannot be read (`decoded`), for another size, for a mask without
    a pixel, and where colours and alpha channel have a shape each.
    """
    image = decoded(path, "check the path and the file", what="the mask", size=size)
    light, solid = _light(path, image), _solid(image)
    mask = light
    if solid is not None and not solid.all():
        if light.all():
            mask = solid
        elif not light.any() or (light & ~solid).any():
            raise UserError(
                f"the mask {path} has one shape in its alpha channel and {'another' if light.any() else 'none'} in its"
                " colours",
                remedy=f"{WANTED}, without an alpha channel",
            )
    if not mask.any():
        why = f"{path} is transparent" if light.any() else f"no pixel of {path} is lighter than 127 of 255"
        raise UserError(f"the mask is empty: {why}", remedy=WANTED)
    return mask


def read_mask(path: Path, size: tuple[int, int]) -> Tensor:
    """Returns the mask `[h, w]` (bool) of a picture's file, as `mask_pixels` finds it, and raises what it raises.

    size: (height, width) that it must have.
    """
    import torch

    return torch.from_numpy(mask_pixels(path, size))


def _light(path: Path, image: Image.Image) -> np.ndarray:
    """Returns where a picture's colours are lighter than half of its range, `[h, w]` (bool)."""
    many = image.mode == "F" or image.mode.startswith("I")
    values = np.asarray(image if many else image.convert("RGB").convert("L"))
    if not np.isfinite(values).all():
        raise UserError(f"the mask {path} cannot be read: it holds NaN or infinite values", remedy=WANTED)
    largest = values.max(initial=0)
    if largest <= 1:
        return values > 0.5
    return values > (127 if largest <= 255 else 32767)


def _solid(image: Image.Image) -> np.ndarray | None:
    """Returns where a picture is more solid than transparent, `[h, w]` (bool); None where it has no alpha channel."""
    if not image.has_transparency_data:
        return None
    return np.asarray(image.convert("RGBA"))[..., 3] > 127


def mask_picture(mask_hw: np.ndarray) -> Image.Image:
    """Returns a mask as a picture: white where it is True. Raises `UserError` for another shape than `[h, w]`."""
    mask = np.asarray(mask_hw)
    if mask.ndim != 2:
        raise UserError(f"a mask has shape {mask.shape}", remedy="give [height, width]")
    return Image.fromarray(np.where(mask.astype(bool), 255, 0).astype(np.uint8))
