"""How checkpoints lie on disk: two layouts, told apart by the names of their files. No torch here."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from riebench.errors import UserError


@dataclass(frozen=True)
class Layout:
    """A folder with these two files."""

    config: str
    weights: str

    @property
    def files(self) -> tuple[str, str]:
        return self.config, self.weights


SAELENS = Layout("cfg.json", "sae_weights.safetensors")
"""What `riebench train` writes (`sae_models.checkpoint`)."""
SDXL_UNBOX = Layout("config.json", "state_dict.pth")
"""What was published for SDXL Turbo (`sae_models.sdxl_unbox`)."""


def layout_of(folder: Path) -> Layout:
    """`SAELENS` where there is a cfg.json, else `SDXL_UNBOX` where both of its files are.

    Raises `UserError` naming both layouts where it is neither.
    """
    folder = Path(folder)
    if (folder / SAELENS.config).is_file():
        return SAELENS
    if all((folder / file).is_file() for file in SDXL_UNBOX.files):
        return SDXL_UNBOX
    layouts = ", or ".join(f"{layout.config} and {layout.weights}" for layout in (SAELENS, SDXL_UNBOX))
    raise UserError(f"{folder} is no checkpoint or lacks a part of it", remedy=f"a checkpoint holds {layouts}")


def holds_part(folder: Path) -> bool:
    """Whether any file of either layout lies in the folder."""
    return any((folder / file).is_file() for file in (*SAELENS.files, *SDXL_UNBOX.files))


def weights_sha256(folder: Path) -> str:
    """sha256 of a checkpoint's weight file, in hex. Raises `UserError` where it is missing or cannot be read."""
    layout = layout_of(folder)
    path = Path(folder) / layout.weights
    refuse_missing(path, layout)
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}", remedy="check who may read it") from error


def refuse_missing(path: Path, layout: Layout) -> None:
    """Raises `UserError` where a checkpoint's file is not there."""
    if not path.is_file():
        raise UserError(f"{path} does not exist", remedy=f"a checkpoint holds {layout.config} and {layout.weights}")
