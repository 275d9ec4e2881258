"""Entries and shapes are what is known of dictionaries without opening them. No torch is imported here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from riebench.core.values import Range


@dataclass(frozen=True)
class Shape:
    """This is what an index says of a checkpoint."""

    kind: str
    """As `Entry.kind`."""
    k: int
    """The most latents active on a row; 0 where there is no such number."""
    num_features: int
    width: int


@dataclass(frozen=True)
class Entry:
    """This describes one trained dictionary of one block. (backbone, block, name) is unique in an index."""

    name: str
    """What a user asks for, e.g. "topk-k16-x8"; the same name for each block of a set trained together."""
    backbone: str
    """The model whose blocks it codes."""
    block: str
    """The block's short name, e.g. "up.0.1"."""
    kind: str
    """The architecture: "topk", "jumprelu", or what `checkpoint.OURS` has."""
    k: Annotated[int, Range(0)]
    """The most latents active on a row; 0 where the architecture sets none."""
    num_features: Annotated[int, Range(1)]
    """The number of latents."""
    width: Annotated[int, Range(1)]
    """The number of values in an input row."""
    folder: str
    """The checkpoint, relative to the folder of the index, or to the repository of a released one."""
    sha256: str
    """The digest of the checkpoint's weight file; empty where none was registered."""
    site: str = "update"
    """What it codes of the block, "update" or "stream"; empty where that is not known."""
    evaluation: Mapping[str, Any] = field(default_factory=dict)
    """The fields of an `Evaluation` on rows that were not trained on; empty where it was not evaluated by us."""
    training: Mapping[str, Any] = field(default_factory=dict)
    """What is needed to train it again; empty where that is not known."""

    @property
    def key(self) -> tuple[str, str, str]:
        """What the entry is found by: (backbone, block, name)."""
        return self.backbone, self.block, self.name
