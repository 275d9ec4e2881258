"""Intervention: a description of a change to one generation, which can be saved."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from riebench.backbones.family import Site
from riebench.core.errors import UserError
from riebench.core.files import write_bytes
from riebench.core.json_text import json_text
from riebench.generation.lens import add_at
from riebench.generation.live import Rewrite
from sae_models.dictionary import Dictionary

BRANCHES = ("cond", "uncond", "both")


def window_steps(window: str, steps: int) -> tuple[int, ...]:
    """Returns the steps of a window, counted from 0: "all", "first", "first 3", "last 5", or a list as "0,2,7".

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


@dataclass(frozen=True, eq=False)
class Addition:
    """Says what is added at one site: a vector for some of its cells, at each step, in all channels or in some.
    Raises `UserError` for other shapes, and for values that are not finite."""

    cells: Tensor
    """int64 `[n]`: numbers of cells, in reading order, each once."""
    values: Tensor
    """`[steps, n, C]`, or `[steps, n, m]` where m channels are named."""
    channels: Tensor | None = None
    """int64 `[m]`: the numbers of the channels that the values are for, each once; None for all."""
    width: int = 0
    """C, where channels are named."""
    replaces: bool = False
    """Whether the values stand in the place of what is there, in all channels; at sites within a block."""

    def __post_init__(self) -> None:
        if self.replaces and self.channels is not None:
            raise UserError("what is put in the place of a value names channels", remedy="give values of all channels")
        if self.values.ndim != 3 or self.cells.shape != self.values.shape[1:2]:
            raise UserError(
                f"an addition of shape {list(self.values.shape)} is for {list(self.cells.shape)} cells",
                remedy="give values [steps, n, C] and the numbers of n cells",
            )
        if self.channels is not None and (
            self.channels.shape != self.values.shape[2:]
            or bool(((self.channels < 0) | (self.channels >= self.width)).any())
        ):
            raise UserError(
                f"an addition of shape {list(self.values.shape)} names {len(self.channels)} of {self.width} channels",
                remedy="give values [steps, n, m], the numbers of m channels, and how many channels the site has",
            )
        if len(self.cells.unique()) < len(self.cells) or bool((self.cells < 0).any()):
            raise UserError("an addition names a cell twice, or one below 0", remedy="give each cell once, from 0 on")
        if not torch.isfinite(self.values).all():
            raise UserError(
                "an addition holds NaN or infinite values", remedy="check the dictionary and the method's strength"
            )

    @classmethod
    def of(cls, dense_tnc: Tensor) -> Addition:
        """Returns the addition of a tensor `[steps, cells, C]` over all cells of a site, without those that are
        zero."""
        if dense_tnc.ndim != 3:
            raise UserError(f"an addition has shape {list(dense_tnc.shape)}", remedy="give [steps, cells, C]")
        cells = (dense_tnc != 0).any(dim=2).any(dim=0).nonzero().flatten()
        return cls(cells, dense_tnc[:, cells])

    def dense(self, num_cells: int) -> Tensor:
        """Returns `[steps, num_cells, C]`, zero where nothing is added."""
        dense_tnc = self.values.new_zeros(len(self.values), num_cells, self.width or self.values.shape[-1])
        for dense_nc, values_nm in zip(dense_tnc, self.values, strict=True):
            add_at(dense_nc, self.cells, self.channels, values_nm)
        return dense_tnc

    def scaled(self, factor: float) -> Addition:
        """Returns the same addition, times a factor."""
        return replace(self, values=factor * self.values)


@dataclass(frozen=True)
class Push:
    """Says how hard a feature is pushed, and when (`Intervention.from_features`)."""

    value: float
    """In units of the dictionary's latents; negative to take away."""
    window: str = "all"
    """As in `Intervention.window`."""


@dataclass(frozen=True)
class Intervention:
    """Says what is added where. No additions and the original prompt is the original image itself."""

    additions: Mapping[Site, Addition] = field(default_factory=dict)
    """Site -> what is added to that site's value at each step. A tensor `[steps, cells, C]` over all cells of the site
    may be given for it."""
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
        given = {site: _addition(site, value) for site, value in self.additions.items()}
        object.__setattr__(self, "additions", given)
        for site in self._replaced:
            if self.branch != "cond" or not site.inside:
                raise UserError(
                    f"values are put in the place of those at {site.name}, in branch {self.branch!r}",
                    remedy="do that within a block, in branch 'cond'; what a block puts out can be added to",
                )

    @classmethod
    def from_features(
        cls,
        features: Mapping[Site | str, Mapping[int, float | Push]],
        cells: Mapping[str, Tensor],
        dictionaries: Mapping[Site, Dictionary],
        steps: int,
        branch: str = "both",
    ) -> Intervention:
        """Returns the intervention that adds features, each with a value, a sign and steps of its own.

        features: site, or its name, -> number of a feature -> its value at every cell, or a `Push`. cells: block -> the
        cells that they are added at, bool `[cells]`. dictionaries: site -> what decodes them, without its bias. steps:
        of a generation. Raises `UserError` for a site without dictionary or cells, a number that the dictionary has
        not, a value that is not finite and a window that the generation has not.
        """
        additions, chosen = {}, {}
        for place, pushes in features.items():
            site = Site.parse(place) if isinstance(place, str) else place
            if site not in dictionaries or site.block not in cells:
                raise UserError(f"there is no dictionary, or no cell, for {site.name}", remedy="give both")
            dictionary = dictionaries[site]
            latents_tf = torch.zeros(steps, dictionary.num_features, device=cells[site.block].device)
            for number, push in pushes.items():
                if not 0 <= number < dictionary.num_features:
                    raise UserError(
                        f"{site.name} has no feature {number}",
                        remedy=f"use numbers from 0 to {dictionary.num_features - 1}",
                    )
                push = push if isinstance(push, Push) else Push(push)
                latents_tf[list(window_steps(push.window, steps)), number] = push.value
            where = cells[site.block].flatten().nonzero().flatten()
            with torch.no_grad():
                vectors_tc = dictionary.decode_linear(latents_tf)
            additions[site] = Addition(where, vectors_tc[:, None].expand(-1, len(where), -1).clone())
            values = {n: push.value if isinstance(push, Push) else push for n, push in pushes.items()}
            chosen[site.name] = {
                "on": sorted(n for n, value in values.items() if value > 0),
                "off": sorted(n for n, value in values.items() if value < 0),
            }
        counts: dict[str, int] = {}
        for name, sides in chosen.items():
            block = Site.parse(name).block
            counts[block] = counts.get(block, 0) + sum(map(len, sides.values()))
        return cls(additions, features=counts, chosen=chosen, branch=branch)

    def restricted(self, blocks: tuple[str, ...]) -> Intervention:
        """Returns the same change, in these blocks only."""
        return replace(
            self,
            additions={site: value for site, value in self.additions.items() if site.block in blocks},
            rewrites={site: value for site, value in self.rewrites.items() if site.block in blocks},
            features={block: count for block, count in self.features.items() if block in blocks},
            chosen={name: numbers for name, numbers in self.chosen.items() if Site.parse(name).block in blocks},
        )

    @property
    def sites(self) -> tuple[Site, ...]:
        """The sites where anything is added."""
        return tuple(dict.fromkeys((*self.additions, *self.rewrites)))

    @property
    def _replaced(self) -> list[Site]:
        return [site for site, added in self.additions.items() if added.replaces]

    @property
    def blocks(self) -> tuple[str, ...]:
        """The blocks of these sites, each once."""
        return tuple(dict.fromkeys(site.block for site in self.sites))

    @property
    def norm(self) -> float:
        """The L2 norm of everything that is added, over sites, the window's steps, channels and cells; NaN where that
        is known only when the image is generated."""
        if self.rewrites or self._replaced:
            return float("nan")
        values = (added.values for added in self.additions.values())
        seen = (value_tnc[list(window_steps(self.window, len(value_tnc)))] for value_tnc in values)
        return float(sum(value_tnc.double().square().sum() for value_tnc in seen) ** 0.5)

    def equalised(self) -> Intervention:
        """Returns the same change with one L2 norm in every block that is changed, and the `norm` of the whole as it
        was: a block's additions are multiplied by the root mean square of the blocks' norms over their own. Raises
        `UserError` where the norms are known only when the image is generated."""
        if self.rewrites or self._replaced:
            raise UserError(
                "what is read from the running activation has no norm yet", remedy="use mode static with budget norm"
            )
        norms = {block: self.restricted((block,)).norm for block in self.blocks}
        changed = {block: norm for block, norm in norms.items() if norm > 0}
        scale = {block: self.norm / len(changed) ** 0.5 / norm for block, norm in changed.items()}
        additions = {site: added.scaled(scale.get(site.block, 1.0)) for site, added in self.additions.items()}
        return replace(self, additions=additions)

    def save(self, path: Path) -> None:
        """Writes the intervention as safetensors, whole: also the dictionaries of its rewrites; what is not a tensor
        goes into the header. Raises `UserError` for a dictionary of a kind that is not ours."""
        words = {name: getattr(self, name) for name in _WORDS} | {"rewrites": {}, "widths": {}, "replaces": []}
        tensors = {}
        for site, added in self.additions.items():
            tensors |= {f"{site.name}{_CELLS}": added.cells, f"{site.name}{_VALUES}": added.values}
            if added.channels is not None:
                tensors[f"{site.name}{_CHANNELS}"] = added.channels
                words["widths"][site.name] = added.width
            if added.replaces:
                words["replaces"].append(site.name)
        for site, rewrites in self.rewrites.items():
            described = []
            for i, rewrite in enumerate(rewrites):
                said, parts = rewrite.describe()
                described.append(said)
                tensors |= {f"{site.name}{_REWRITE}{i}.{name}": value for name, value in parts.items()}
            words["rewrites"][site.name] = described
        held = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
        write_bytes(path, save(held, metadata={"riebench": json_text(words)}))

    @classmethod
    def load(cls, path: Path) -> Intervention:
        """Returns what `save` wrote. Raises `UserError` for a file that is missing or not an intervention."""
        try:
            with safe_open(path, framework="pt") as opened:
                words = json.loads(opened.metadata()["riebench"])
                tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
            rewrites = {}
            for name, described in words.pop("rewrites").items():
                starts = [f"{name}{_REWRITE}{i}." for i in range(len(described))]
                parts = [{n.removeprefix(s): tensors.pop(n) for n in list(tensors) if n.startswith(s)} for s in starts]
                rewrites[Site.parse(name)] = tuple(map(Rewrite.rebuild, described, parts))
            names = [name.removesuffix(_CELLS) for name in tensors if name.endswith(_CELLS)]
            widths, replaces = words.pop("widths"), words.pop("replaces")
            additions = {
                Site.parse(n): Addition(
                    tensors[n + _CELLS],
                    tensors[n + _VALUES],
                    tensors.get(n + _CHANNELS),
                    widths.get(n, 0),
                    n in replaces,
                )
                for n in names
            }
            return cls(additions=additions, rewrites=rewrites, **words)
        except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
            raise UserError(
                f"{path} is not an intervention: {error}", remedy="write it with Intervention.save"
            ) from error


_WORDS = ("features", "chosen", "prompt", "branch", "window")
_CELLS, _VALUES, _CHANNELS = "/cells", "/values", "/channels"  # behind a site's name, in a saved file
_REWRITE = "/rewrite."  # between a site's name and the number of a rewrite, in a saved file


def _addition(site: Site, value: Addition | Tensor) -> Addition:
    """Returns what is added at a site, of what was given for it. Raises `UserError` naming the site."""
    try:
        return value if isinstance(value, Addition) else Addition.of(value)
    except UserError as error:
        raise UserError(f"at {site.name}: {error}") from error
