"""Feature transport (protocol §6): one code for every dictionary, be it an SAE, neurons or the update itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from riebench.backbones.family import Site
from riebench.core.errors import UserError
from riebench.generation.interventions import Addition, Intervention
from riebench.generation.live import Rewrite
from riebench.methods.latents import Region
from riebench.methods.method import Case, check_settings
from riebench.methods.selection import Selected
from sae_models.dictionary import Dictionary, Identity, decode_some

#: Name -> a region's value `[steps, 1, F]` of features `[steps, cells, F]`, per step and feature.
STATISTICS: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda z_tnf: z_tnf.mean(dim=1, keepdim=True),
    "quantile": lambda z_tnf: torch.stack([z_nf.float().quantile(0.95, dim=0, keepdim=True) for z_nf in z_tnf]),
    "max": lambda z_tnf: z_tnf.amax(dim=1, keepdim=True),
}


@dataclass(frozen=True, kw_only=True)
class Transport:
    """Says how chosen features are moved. Methods inherit these settings. Raises `UserError` for unknown values."""

    strength: float = 1.0
    """m: what is added is multiplied with it."""
    mode: Literal["static", "adaptive", "replace"] = "static"
    """static: D = m (z_e[on] W_dec - z_o[off] W_dec), of the unintervened traces; adaptive: the part that is taken away
    is read from the running activation; replace: on features become z_e, off features 0, the rest of the running
    activation stays."""
    keep_spatial: bool = True
    """Each cell gets its own value; else every cell of the region gets the region's `statistic`."""
    statistic: Literal["mean", "quantile", "max"] = "mean"
    """mean, quantile (95 %) or max over the region's cells, for each step."""
    placement: Literal["edited", "original"] = "edited"
    """Where the on features go: to the edited image's region, each at its own place, or, as the region's statistic, to
    the original image's."""
    only_add: bool = False
    """Turn features on, and none off."""
    window: str = "all"
    """The steps at which anything is added: all, first, first 3, last 5, or a list as 0,2,7."""
    branch: Literal["cond", "uncond", "both"] = "both"
    """Under guidance: cond, uncond, or both (add to cond, take away from uncond)."""
    budget: Literal["features", "norm"] = "features"
    """What blocks have equally much of: features, each its k; norm: also the L2 norm of what is added
    (`Intervention.equalised`), so that none leads because its updates are larger."""

    def __post_init__(self) -> None:
        check_settings(self)
        if self.budget == "norm" and self.mode != "static":
            raise UserError(f"budget norm cannot be had in mode {self.mode}", remedy="use mode static")


@torch.no_grad()
def select_features(
    case: Case, dictionaries: Mapping[Site, Dictionary], *, k: int, pool: str, aggregation: str, unit_norm: bool = False
) -> dict[Site, Selected]:
    """Returns on and off features at every site (`riebench.methods.selection.select`), chosen on the case itself, or
    on the one that its method asked to choose on. pool: "block", "all", or "" for the mode's own: each block its k
    in strict mode, all blocks together in reference mode."""
    chosen_on = case.select_on or case
    steps = 1 if aggregation == "first" else case.steps
    edited, original = (
        Region(chosen_on, side, dictionaries).first(steps, alone=chosen_on is not case)
        for side in ("edited", "original")
    )
    return case.mode.select(edited, original, k, pool, aggregation, unit_norm)


@torch.no_grad()
def transport(
    case: Case,
    dictionaries: Mapping[Site, Dictionary],
    selected: Mapping[Site, Selected],
    how: Transport,
    values: Mapping[Site, Tensor] | None = None,
) -> Intervention:
    """Returns the intervention that moves the selected features of each site, as `how` says. No bias is moved.

    values: site -> what each of its features is worth at every cell and step, `[F]`; None for what it is there.
    """
    how = case.mode.settings(how, case.edit.category)
    to_original = how.placement == "original"
    takes = how.mode == "static" and not how.only_add  # what is taken away is known now
    edited, original = (Region(case, side, dictionaries) for side in ("edited", "original"))
    numbers_on = {site: selected[site].on for site in dictionaries}
    numbers_off = {site: selected[site].off for site in dictionaries if takes}
    if values is None:
        on_values, off_values = edited.of(numbers_on), original.of(numbers_off)
    else:
        on_values, off_values = (
            {site: values[site][numbers].expand(case.steps, 1, -1) for site, numbers in side.items()}
            for side in (numbers_on, numbers_off)
        )
    additions, rewrites = {}, {}
    for site, dictionary in dictionaries.items():
        on, off = selected[site].on, selected[site].off
        on_cells, off_cells = case.edited_cells[site.block], case.original_cells[site.block]
        # taken out one by one: of neurons these are large
        on_tnk = _values(on_values.pop(site).float(), how, how.keep_spatial and not to_original)
        if to_original:
            on_cells = off_cells
        if how.only_add:
            off = off[:0]
        if how.mode == "replace":
            target = on_tnk.expand(-1, int(on_cells.sum()), -1)
            rewrites[site] = (
                Rewrite(dictionary, on, on_cells, target, how.strength),
                Rewrite(dictionary, off, off_cells, None, how.strength),
            )
            continue
        parts = [(on_cells, on, how.strength * _moved(dictionary, on, on_tnk))]
        if takes:
            off_tnk = _values(off_values.pop(site).float(), how, how.keep_spatial)
            parts.append((off_cells, off, -how.strength * _moved(dictionary, off, off_tnk)))
        additions[site] = _summed(parts, dictionary, edited.like(site))
        if how.mode == "adaptive":
            scale = case.mode.off_scale(dictionary, on, off)
            rewrites[site] = (
                Rewrite(dictionary, off, off_cells, None, how.strength * scale, mean=not how.keep_spatial),
            )
    made = Intervention(
        additions,
        rewrites,
        features=count_features(selected, how.only_add),
        chosen=_numbers(dictionaries, selected, how.only_add),
        branch=how.branch,
        window=how.window,
    )
    return made.equalised() if how.budget == "norm" else made


def _values(features_tnk: Tensor, how: Transport, own: bool) -> Tensor:
    """Returns `[steps, cells, k]`, or `[steps, 1, k]` where all cells get the region's value."""
    return features_tnk if own else STATISTICS[how.statistic](features_tnk).to(features_tnk)


def _moved(dictionary: Dictionary, numbers: Tensor, z_tnk: Tensor) -> Tensor:
    """Returns what latents add, `[steps, cells, C]`; of channels themselves, just these: `[steps, cells, k]`."""
    if isinstance(dictionary, Identity):
        return z_tnk
    return decode_some(dictionary, numbers, z_tnk.flatten(0, 1)).unflatten(0, z_tnk.shape[:2])


def _summed(parts: Sequence[tuple[Tensor, Tensor, Tensor]], dictionary: Dictionary, dtype: torch.dtype) -> Addition:
    """Returns the addition that is the sum of parts: (cells, bool `[cells]`; features `[k]`; what `_moved` makes)."""
    touched = torch.stack([cells for cells, _, _ in parts]).any(dim=0)
    some = isinstance(dictionary, Identity)
    channels = torch.cat([numbers for _, numbers, _ in parts]).unique().to(touched.device) if some else None
    steps, width = len(parts[0][2]), dictionary.width
    shape = (steps, int(touched.sum()), width if channels is None else len(channels))
    values_tnm = torch.zeros(shape, dtype=dtype, device=touched.device)
    for cells, numbers, rows_tnk in parts:
        rows = cells[touched].nonzero().flatten()
        columns = slice(None) if channels is None else torch.searchsorted(channels, numbers.to(channels.device))
        where = (slice(None), rows) if channels is None else (slice(None), rows[:, None], columns)
        values_tnm[where] += rows_tnk.to(values_tnm)
    if channels is None or len(channels) == width:
        return Addition(touched.nonzero().flatten(), values_tnm)
    return Addition(touched.nonzero().flatten(), values_tnm, channels, width)


def everything(dictionaries: Mapping[Site, Dictionary]) -> dict[Site, Selected]:
    """Returns every feature, on and off: with `Identity` dictionaries, the dense patch."""
    return {
        site: Selected(torch.arange(dictionary.num_features), torch.arange(dictionary.num_features))
        for site, dictionary in dictionaries.items()
    }


def count_features(selected: Mapping[Site, Selected], only_on: bool = False) -> dict[str, int]:
    """Returns block -> features turned on and off there."""
    counts: dict[str, int] = {}
    for site, chosen in selected.items():
        counts[site.block] = counts.get(site.block, 0) + (len(chosen.on) if only_on else chosen.count)
    return counts


def _numbers(
    dictionaries: Mapping[Site, Dictionary], selected: Mapping[Site, Selected], only_on: bool
) -> dict[str, dict[str, list[int]]]:
    """Returns the name of a site -> its chosen features, where not all of them are."""
    return {
        site.name: {"on": chosen.on.tolist(), "off": [] if only_on else chosen.off.tolist()}
        for site, chosen in selected.items()
        if len(chosen.on) < dictionaries[site].num_features
    }
