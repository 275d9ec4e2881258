"""Intervention: a serialisable description of a change to one generation."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from riebench.core.errors import UserError
from riebench.core.files import write_bytes
from riebench.generation.lens import Site
from riebench.generation.live import Rewrite

BRANCHES = ("cond", "uncond", "both")


def window_steps(window: str, steps: int) -> tuple[int, ...]:
    """The steps of a window, counted from 0: "all", "first", "first 3", "last 5", or a list as "0,2,7".

    Raises `UserError` for what is none of these, and for a step that a generation of so many `steps` does not have.
    """
    side, _, count = window.partition(" ")
    counted = side in ("first", "last")
    try:
        numbers = [int(word) for word in ((count or "1",) if counted else window.split(","))] if window != "all" else []
    except ValueError as error:
        raise UserError(
            f"{window!r} is no window of steps", remedy="use 'all', 'first', 'first 3', 'last 5' or a list as '0,2,7'"
        ) from error
    if counted:
        if not 1 <= numbers[0] <= steps:
            raise UserError(f"the window {window!r} has {numbers[0]} of {steps} steps", remedy=f"use 1 to {steps}")
        return tuple(range(numbers[0]) if side == "first" else range(steps - numbers[0], steps))
    if not all(0 <= number < steps for number in numbers):
        raise UserError(f"the window {window!r} goes beyond the {steps} steps", remedy=f"use steps 0 to {steps - 1}")
    return tuple(sorted(set(numbers))) if numbers else tuple(range(steps))


@dataclass(frozen=True)
class Intervention:
    """What is added where. No additions and the original prompt is the original image itself."""

    additions: Mapping[Site, Tensor] = field(default_factory=dict)
    """Site -> `[steps, C, h, w]`, added to that site's value at each step."""
    rewrites: Mapping[Site, tuple[Rewrite, ...]] = field(default_factory=dict)
    """Site -> what is computed there from the running value and added, at each step."""
    features: Mapping[str, int] = field(default_factory=dict)
    """Block -> number of features turned on and off there."""
    chosen: Mapping[str, Mapping[str, list[int]]] = field(default_factory=dict)
    """Name of a site -> the numbers of its features turned "on" and "off", where a method chose some."""
    prompt: str = "original"
    """Which of the edit's prompts is generated from: "original", or "edited" for the oracle prompt alone."""
    branch: str = "both"
    """Under guidance (protocol §3): "cond" adds to the row with the prompt, "uncond" to the row without, "both" adds to
    the first and takes away from the second, as the paper does. Without guidance only the first is there. A rewrite
    reads the running value of the row that it is added to."""
    window: str = "all"
    """The steps at which anything is added (`window_steps`), by the sampler's own step index."""

    def __post_init__(self) -> None:
        if self.branch not in BRANCHES:
            raise UserError(
                f"an intervention cannot have branch {self.branch!r}", remedy=f"use one of {', '.join(BRANCHES)}"
            )
        if self.prompt not in ("original", "edited"):
            raise UserError(f"an intervention cannot have prompt {self.prompt!r}", remedy="use 'original' or 'edited'")
        if self.prompt == "edited" and self.sites:
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
        return replace(
            self,
            additions={site: value for site, value in self.additions.items() if site.block in blocks},
            rewrites={site: value for site, value in self.rewrites.items() if site.block in blocks},
            features={block: count for block, count in self.features.items() if block in blocks},
            chosen={name: numbers for name, numbers in self.chosen.items() if _site(name).block in blocks},
        )

    @property
    def sites(self) -> tuple[Site, ...]:
        """Where anything is added."""
        return tuple(dict.fromkeys((*self.additions, *self.rewrites)))

    @property
    def blocks(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(site.block for site in self.sites))

    @property
    def norm(self) -> float:
        """L2 norm of everything that is added, over sites, the window's steps, channels and cells; NaN where that is
        known only when the image is generated."""
        if self.rewrites:
            return float("nan")
        values = (value[list(window_steps(self.window, len(value)))] for value in self.additions.values())
        return float(sum(value.double().square().sum() for value in values) ** 0.5)

    def equalised(self) -> Intervention:
        """The same change with one L2 norm in every block that is changed, and the `norm` of the whole as it was: a
        block's additions are multiplied by the root mean square of the blocks' norms over their own. Raises
        `UserError` where the norms are known only when the image is generated."""
        if self.rewrites:
            raise UserError(
                "what is read from the running activation has no norm yet", remedy="use mode static with budget norm"
            )
        norms = {block: self.restricted((block,)).norm for block in self.blocks}
        changed = {block: norm for block, norm in norms.items() if norm > 0}
        scale = {block: self.norm / len(changed) ** 0.5 / norm for block, norm in changed.items()}
        return replace(self, additions={site: scale.get(site.block, 1.0) * v for site, v in self.additions.items()})

    def save(self, path: Path) -> None:
        """Writes the intervention as safetensors, whole: also the dictionaries of its rewrites; what is not a tensor
        goes into the header. Raises `UserError` for a dictionary of a kind that cannot be written."""
        words = {name: getattr(self, name) for name in _WORDS}
        tensors = {site.name: value for site, value in self.additions.items()}
        words["rewrites"] = {}
        for site, rewrites in self.rewrites.items():
            described = []
            for i, rewrite in enumerate(rewrites):
                said, parts = rewrite.describe()
                described.append(said)
                tensors |= {f"{site.name}{_REWRITE}{i}.{name}": value for name, value in parts.items()}
            words["rewrites"][site.name] = described
        held = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
        write_bytes(path, save(held, metadata={"riebench": json.dumps(words)}))

    @classmethod
    def load(cls, path: Path) -> Intervention:
        """Raises `UserError` for a file that is missing or not an intervention."""
        try:
            with safe_open(path, framework="pt") as opened:
                words = json.loads(opened.metadata()["riebench"])
                tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
            rewrites = {}
            for name, described in words.pop("rewrites").items():
                starts = [f"{name}{_REWRITE}{i}." for i in range(len(described))]
                parts = [{n.removeprefix(s): tensors.pop(n) for n in list(tensors) if n.startswith(s)} for s in starts]
                rewrites[_site(name)] = tuple(map(Rewrite.rebuild, described, parts))
            additions = {_site(name): value for name, value in tensors.items()}
            return cls(additions=additions, rewrites=rewrites, **words)
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{path} is not an intervention: {error}", remedy="write it with Intervention.save"
            ) from error


_WORDS = ("features", "chosen", "prompt", "branch", "window")
_REWRITE = "/rewrite."  # between a site's name and the number of a rewrite, in a saved file


def _site(name: str) -> Site:
    block, _, layer = name.partition("/neurons.")
    return Site(block, int(layer) if layer else None)
