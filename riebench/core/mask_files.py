"""A mask in a picture's file, in whatever way it was saved. Imports no torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from riebench.core.errors import UserError

#: What a mask is, as remedies say it.
WANTED = "give a picture of the generated image's size, white where the image may change, black elsewhere"
MOST_PIXELS = 2**26  # of 8,192 x 8,192 px: a small file may hold a picture that fills the memory


def mask_pixels(path: Path, size: tuple[int, int] | None = None) -> np.ndarray:
    """Returns the mask `[h, w]` (bool) in the file of a picture: where it is lighter than half of its range.

    Half is 127 of 255, or of 65,535 in 16 bits; where no value is above 1, it is 0.5. A transparent pixel is none of
    the mask: where the picture is white all over, its shape is its alpha channel. size: (height, width) that it must
    have, if known. Raises `UserError` for a file that cannot be read, for another size or one above `MOST_PIXELS`, for
    a mask without a pixel, and where colours and alpha channel have a shape each.
    """
    try:
        with Image.open(path) as image:
            if size is not None and (image.height, image.width) != size:
                raise UserError(
                    f"the mask {path} has {image.width} x {image.height} px, its image {size[1]} x {size[0]} px",
                    remedy="give a mask of the image's size",
                )
            if image.width * image.height > MOST_PIXELS:
                raise UserError(
                    f"the mask {path} has {image.width} x {image.height} px, more than any image", remedy=WANTED
                )
            light, solid = _light(image), _solid(image)
    except UserError:
        raise
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # Pillow's words for what is none
        said = getattr(error, "strerror", None) or error
        raise UserError(f"the mask {path} cannot be read: {said}", remedy="check the path and the file") from error
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


def _light(image: Image.Image) -> np.ndarray:
    """Returns where a picture's colours are lighter than half of its range, `[h, w]` (bool)."""
    many = image.mode == "F" or image.mode.startswith("I")
    values = np.asarray(image if many else image.convert("RGB").convert("L"))
    if not np.isfinite(values).all():
        raise ValueError("it holds NaN or infinite values")
    largest = values.max(initial=0)
    if largest <= 1:
        return values > 0.5
    return values > (127 if largest <= 255 else 32767)


def _solid(image: Image.Image) -> np.ndarray | None:
    """Returns where a picture is more solid than transparent, `[h, w]` (bool); None where it has no alpha channel."""
    if not image.has_transparency_data:
        return None
    return np.asarray(image.convert("RGBA"))[..., 3] > 127
