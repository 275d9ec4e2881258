"""Setup: what all cases of a run share beside its backbone and its methods. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from riebench.backbones.table import Backbone
from riebench.core.errors import UserError, did_you_mean
from riebench.regions.grounders import MASK_RULES
from sae_models import index

MODES = {
    "strict": "the protocol, without the defects of the published code",
    "reference": "as the published code does, so that numbers can be compared with it",
}


@dataclass(frozen=True)
class Setup:
    """Raises `UserError` for an unknown mode or mask rule, and where they do not go together."""

    mode: str = "strict"
    """Out of `MODES`."""
    mask_rule: str = "touched"
    """How an image mask becomes cells: touched, half, or published (protocol §4)."""
    grounder: Mapping[str, object] = field(default_factory=dict)
    """Settings of the backbone's grounder, such as its thresholds, where they are not its usual ones."""
    dictionary: str = ""
    """Name of the dictionaries that methods are given; "" takes the benchmark's own."""
    dictionaries: str = ""
    """Folder of one's own dictionaries; "" takes those that are shipped or released."""
    dtype: str = "float32"
    """What the U-Net computes in: float32, float16 or bfloat16."""
    metrics: tuple[str, ...] = ()
    """Metrics beside those that every run has."""

    def __post_init__(self) -> None:
        for name, known in (("mode", MODES), ("mask_rule", MASK_RULES)):
            value = getattr(self, name)
            if value not in known:
                raise UserError(
                    f"unknown {name.replace('_', ' ')} {value!r}{did_you_mean(value, known)}",
                    remedy=f"use {' or '.join(known)}",
                )
        if (self.mode == "reference") != (self.mask_rule == "published"):
            raise UserError(
                f"mask rule {self.mask_rule!r} does not go with mode {self.mode!r}",
                remedy="reference mode, and it alone, uses 'published'",
            )

    @property
    def keeps_marks(self) -> bool:
        """Whether prompts are scored with their `[ ]`, as the published scores are."""
        return self.mode == "reference"

    def metric_names(self, family: str) -> tuple[str, ...]:
        """All metrics of a run whose pictures a family of networks judges."""
        from riebench.metrics import default_metrics

        return tuple(dict.fromkeys((*default_metrics(family), *self.metrics)))

    def dictionary_of(self, backbone: Backbone, block: str) -> tuple[index.Entry, Path | None]:
        """(Entry of the dictionary that methods are given on a block, the folder it lies in; None for ours).

        Raises `UserError` naming what there is where there is none of that name.
        """
        root = Path(self.dictionaries).expanduser() if self.dictionaries else None
        return index.find(backbone.dictionaries or backbone.name, block, self.dictionary or None, root=root), root
