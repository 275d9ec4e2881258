"""Intervention: a serialisable description of a change to one generation."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from riebench.errors import UserError
from riebench.files import replacing
from riebench.lens import Site

BRANCHES = ("cond", "uncond", "both")


@dataclass(frozen=True)
class Intervention:
    """What is added where. No additions and the original prompt is the original image itself."""

    additions: Mapping[Site, Tensor] = field(default_factory=dict)
    """Site -> `[steps, C, h, w]`, added to that site's value at each step."""
    features: Mapping[str, int] = field(default_factory=dict)
    """Block -> number of features turned on and off there."""
    prompt: str = "original"
    """Which of the edit's prompts is generated from: "original", or "edited" for the oracle prompt alone."""
    branch: str = "both"
    """Under guidance (protocol §3): "cond" adds to the row with the prompt, "uncond" to the row without, "both" adds to
    the first and takes away from the second, as the paper does. Without guidance only the first is there."""

    def __post_init__(self) -> None:
        if self.branch not in BRANCHES:
            raise UserError(
                f"an intervention cannot have branch {self.branch!r}", remedy=f"use one of {', '.join(BRANCHES)}"
            )
        if self.prompt not in ("original", "edited"):
            raise UserError(f"an intervention cannot have prompt {self.prompt!r}", remedy="use 'original' or 'edited'")
        if self.prompt == "edited" and self.additions:
            raise UserError("an intervention on the edited prompt adds nothing", remedy="leave its additions out")
        for site, value in self.additions.items():
            if value.ndim != 4:
                raise UserError(
                    f"the addition at {site.name} has shape {list(value.shape)}", remedy="give [steps, C, h, w]"
                )
            if not torch.isfinite(value).all():
                raise UserError(
                    f"the addition at {site.name} holds NaN or infinite values",
                    remedy="check the dictionary and the method's strength",
                )

    def restricted(self, blocks: tuple[str, ...]) -> Intervention:
        """The same change, in these blocks only."""
        return Intervention(
            {site: value for site, value in self.additions.items() if site.block in blocks},
            {block: count for block, count in self.features.items() if block in blocks},
            self.prompt,
            self.branch,
        )

    @property
    def blocks(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(site.block for site in self.additions))

    @property
    def norm(self) -> float:
        """L2 norm of everything that is added, over sites, steps, channels and cells."""
        return float(sum(value.double().square().sum() for value in self.additions.values()) ** 0.5)

    def save(self, path: Path) -> None:
        """Writes the intervention as safetensors; what is not a tensor goes into the header."""
        words = {"features": dict(self.features), "prompt": self.prompt, "branch": self.branch}
        header = {"riebench": json.dumps(words)}
        tensors = {site.name: value.contiguous() for site, value in self.additions.items()}
        with replacing(Path(path)) as temporary:
            save_file(tensors, temporary, metadata=header)

    @classmethod
    def load(cls, path: Path) -> Intervention:
        """Raises `UserError` for a file that is missing or not an intervention."""
        try:
            with safe_open(path, framework="pt") as opened:
                header = json.loads(opened.metadata()["riebench"])
                additions = {_site(name): opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{path} is not an intervention: {error}", remedy="write it with Intervention.save"
            ) from error
        return cls(additions, header["features"], header["prompt"], header["branch"])


def _site(name: str) -> Site:
    block, _, layer = name.partition("/neurons.")
    return Site(block, int(layer) if layer else None)
