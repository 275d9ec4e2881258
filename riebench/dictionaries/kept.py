"""What an evaluation has done so far, so that one that was stopped or killed goes on where it was."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from riebench.core.errors import UserError
from riebench.core.files import replacing, write_json

SAVE_SECONDS = 10.0  # of work that is lost at most


class Kept:
    """The parts of one evaluation by name, in a folder of its own; without a folder nothing is kept.

    A part is written whole or not at all; one that cannot be read counts as not there, and is made again.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder
        self._saved_at = time.monotonic()

    @property
    def is_due(self) -> bool:
        """Returns whether enough has been done since the last part was written for the next to be."""
        return self.folder is not None and time.monotonic() - self._saved_at >= SAVE_SECONDS

    def read(self, name: str) -> list | dict | None:
        """Returns a part that JSON holds; None where it is not there."""
        try:
            return json.loads((self.folder / f"{name}.json").read_text()) if self.folder else None
        except (OSError, ValueError):
            return None

    def write(self, name: str, part: list | dict) -> None:
        """Writes a part that JSON holds; floats come back to the bit. Raises `UserError` where that fails."""
        if self.folder:
            write_json(self.folder / f"{name}.json", part, sort_keys=False)
            self._saved_at = time.monotonic()

    def read_tensors(self, name: str) -> dict[str, Tensor] | None:
        """Returns a part of tensors, on the CPU; None where it is not there."""
        try:
            return load_file(self.folder / f"{name}.safetensors") if self.folder else None
        except (OSError, SafetensorError):
            return None

    def write_tensors(self, name: str, part: Mapping[str, Tensor]) -> None:
        """Writes a part of tensors. Raises `UserError` where that fails."""
        if self.folder is None:
            return
        with replacing(self.folder / f"{name}.safetensors") as temporary:
            try:
                save_file({key: tensor.detach().cpu().contiguous().clone() for key, tensor in part.items()}, temporary)
            except SafetensorError as error:
                raise UserError(f"cannot write {temporary}: {error}", remedy="choose a disk with room") from error
        self._saved_at = time.monotonic()

    def clear(self) -> None:
        """Removes the folder, of an evaluation that is done."""
        if self.folder:
            shutil.rmtree(self.folder, ignore_errors=True)
