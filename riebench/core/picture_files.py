"""A picture in a file is one picture, whole, of a size that memory holds, or it is refused. Imports no torch."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import IO

from PIL import Image

from riebench.core.errors import UserError

MOST_PIXELS = 2**26  # of 8192 x 8192: a small file may hold a picture that fills the memory


def decoded(
    file: Path | IO[bytes],
    remedy: str,
    *,
    formats: Collection[str] = (),
    side: int = 0,
    what: str = "picture",
    size: tuple[int, int] | None = None,
) -> Image.Image:
    """Returns the picture of a file, decoded to its last row, whose `format` says what the file is.

    formats: those that are allowed, as Pillow calls them; all where none is named. side: the most pixels of a side; 0
    allows `MOST_PIXELS` in all. what: the file is called in messages. size: (height, width) that it must have. Raises
    `UserError` with the remedy for a file that is no picture, broken, cut short, too large or several pictures.
    """
    try:
        with Image.open(file) as picture:
            width, height = picture.size
            if side and max(width, height) > side or width * height > MOST_PIXELS:
                most = f"{side} x {side}" if side else MOST_PIXELS
                raise ValueError(f"it has {width} x {height} pixels, where {most} are allowed")
            if size is not None and (height, width) != size:
                raise UserError(
                    f"{what} {file} has {width} x {height} px, its image {size[1]} x {size[0]} px",
                    remedy="give one of the image's size",
                )
            if formats and picture.format not in formats:
                raise ValueError(f"it is a {picture.format} file")
            if getattr(picture, "is_animated", False):
                raise ValueError("it holds several pictures")
            picture.load()
            return picture
    except UserError:
        raise
    except Exception as error:  # Pillow's decoders have many words for a broken file
        said = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise UserError(f"{what} {file} cannot be read: {said}", remedy=remedy) from error
