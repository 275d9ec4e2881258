"""Setup: what all cases of a run share beside its backbone and its methods. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from riebench.backbones.table import Backbone
from riebench.core.errors import UserError, did_you_mean
from riebench.core.files import named_path
from riebench.methods.modes import Mode, mode_named
from riebench.regions.grounders import MASK_RULES
from sae_models import index

SITES = ("update", "stream")  # what dictionaries can read of a block


@dataclass(frozen=True)
class Setup:
    """Says what all cases of a run share. Raises `UserError` for an unknown mode, mask rule or site, and where mode and
    mask rule do not go together."""

    mode: str = "strict"
    """Out of `riebench.methods.modes.MODES`."""
    mask_rule: str = "touched"
    """How an image mask becomes cells: touched, half, or published (protocol §4)."""
    grounder: Mapping[str, object] = field(default_factory=dict)
    """Settings of the backbone's grounder, such as its thresholds, where they are not its usual ones."""
    site: str = ""
    """The kind of site that dictionaries read and methods are given: update or stream; "" takes the family's own."""
    dictionary: str = ""
    """Name of the dictionaries that methods are given; "" takes the benchmark's own."""
    dictionaries: str = ""
    """Folder of one's own dictionaries; "" takes those that are shipped or released."""
    dtype: str = "float32"
    """What the denoiser computes in: float32, float16 or bfloat16."""
    metrics: tuple[str, ...] = ()
    """Metrics beside those that every run has."""

    def __post_init__(self) -> None:
        if self.site not in ("", *SITES):
            raise UserError(
                f"methods cannot be given sites of kind {self.site!r}{did_you_mean(self.site, SITES)}",
                remedy=f"use {' or '.join(SITES)}",
            )
        if self.mask_rule not in MASK_RULES:
            raise UserError(
                f"unknown mask rule {self.mask_rule!r}{did_you_mean(self.mask_rule, MASK_RULES)}",
                remedy=f"use {' or '.join(MASK_RULES)}",
            )
        if self.mask_rule not in self.rules.mask_rules:
            raise UserError(
                f"mask rule {self.mask_rule!r} does not go with mode {self.mode!r}",
                remedy=f"use {' or '.join(self.rules.mask_rules)}",
            )

    @property
    def rules(self) -> Mode:
        """The mode itself."""
        return mode_named(self.mode)

    @property
    def keeps_marks(self) -> bool:
        """Returns whether prompts are scored with their `[ ]`, as the published scores are."""
        return self.rules.keeps_marks

    def metric_names(self, family: str) -> tuple[str, ...]:
        """Returns all metrics of a run whose pictures a family of networks judges."""
        from riebench.metrics import default_metrics

        return tuple(dict.fromkeys((*default_metrics(family), *self.metrics)))

    def dictionary_of(self, backbone: Backbone, block: str) -> tuple[index.Entry, Path | None]:
        """Returns (entry of the dictionary that methods are given on a block, the folder it lies in; None for ours).

        Raises `UserError` naming what there is where there is none of that name.
        """
        root = named_path(self.dictionaries) if self.dictionaries else None
        site = self.site or backbone.family.default_site
        return index.find(backbone.trained_on, block, self.dictionary or None, root=root, site=site), root
