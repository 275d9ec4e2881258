"""What a network that scores says of itself, and how it is loaded. Imports no torch."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from riebench.core.hub import Weights

if TYPE_CHECKING:
    import torch

BATCH_SIZE = 16  # images and prompts that a network reads at once where it is not told otherwise
BLOCK_BYTES = 2**20


@dataclass(frozen=True)
class Description:
    """What is stored with the scores of a network."""

    name: str
    """Architecture and weights."""
    files: Sequence[Path] = ()
    """Its weights, of which some may not be there."""
    preprocessing: str = ""
    """What is done to an image in [0, 1]."""
    fetch: str = ""
    """What its weights are called where they are not shipped: by `riebench fetch`, by open_clip or by torchvision."""

    @property
    def weights_sha256(self) -> str:
        """Returns the sha256 of the bytes of the files, one after the other; "" where one is not on this machine."""
        if not self.files or not all(file.is_file() for file in self.files):
            return ""
        states = ((file.stat().st_size, file.stat().st_mtime_ns) for file in self.files)
        return _sha256(tuple(self.files), tuple(states))


class Network(ABC):
    """A network that metrics share by its key."""

    key: str
    """What metrics ask for."""
    label: str
    """How it is called in the titles of scores."""
    fetch_name: str = ""
    """What `riebench fetch` calls its weights; "" where it fetches none."""
    weights: tuple[Weights, ...] = ()
    """What `riebench fetch` gets."""
    only: int = 0
    """The height and width in pixels of the images that it reads as they are, and no others; 0 for any."""
    smallest: int = 1
    """The least height and width that it reads."""

    @abstractmethod
    def describe(self) -> Description:
        """Returns what is known of the network without loading it."""

    @abstractmethod
    def load(self, device: torch.device | str, batch_size: int, keep_marks: bool) -> Any:
        """Returns the network on a device, which reads images from anywhere.

        batch_size: how many images or prompts it reads at once; fewer are filled up, so that a score does not depend
        on them. keep_marks: whether prompts keep their `[ ]`. What is returned forgets what it read in `forget()`.
        Raises `UserError` where weights are missing.
        """


@lru_cache(maxsize=32)
def _sha256(files: tuple[Path, ...], _states: tuple[tuple[int, int], ...]) -> str:
    """Returns the sha256 of files. _states: size and time of each, which stand for its bytes among the cache's keys."""
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as opened:
            while block := opened.read(BLOCK_BYTES):
                digest.update(block)
    return digest.hexdigest()
