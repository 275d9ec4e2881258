"""Pictures that a verb writes where the user says: they say that riebench made them, and replace no other."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from riebench.core.claims import claim_file
from riebench.core.errors import UserError
from riebench.core.files import named_path, replacing

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff")
_SOFTWARE, _MAKER = 305, "riebench"  # the tag of EXIF that names the program, and what it says


def claim_picture(path: str | Path) -> Path:
    """Returns the path of a picture that is to be written. Raises `UserError` for a name that is no picture's, and as
    `claim_file` does, where another's file is there."""
    path = named_path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f"{path} is no name of a picture", remedy=f"end it in {', '.join(SUFFIXES)}")
    return claim_file(path, _is_own)


def save_picture(picture: Image.Image, path: Path) -> None:
    """Writes a picture whole or not at all, with a word that riebench made it. Raises `UserError` where it cannot be
    written."""
    exif = Image.Exif()
    exif[_SOFTWARE] = _MAKER
    with replacing(path) as temporary:
        picture.save(temporary, exif=exif)


def _is_own(path: Path) -> bool:
    try:
        with Image.open(path) as picture:
            return picture.getexif().get(_SOFTWARE) == _MAKER
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return False
