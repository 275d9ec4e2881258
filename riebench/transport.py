"""Feature transport (protocol §6): one code for every dictionary, be it an SAE, neurons or the update itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from riebench.interventions import Intervention
from riebench.lens import Site
from riebench.methods import Case
from riebench.selection import Selected, mean_features, select
from sae_models.dictionary import Dictionary


@dataclass(frozen=True)
class Encoded:
    """Features `[steps, cells, F]` of a case at each site, at the cells of each image's region."""

    edited: Mapping[Site, Tensor]
    original: Mapping[Site, Tensor]


@torch.no_grad()
def encode_regions(case: Case, dictionaries: Mapping[Site, Dictionary]) -> Encoded:
    """The features of both images' updates, each in its own region."""
    return Encoded(
        *(
            {
                site: _encode(dictionary, trace[site].permute(0, 2, 3, 1)[:, cells[site.block]])
                for site, dictionary in dictionaries.items()
            }
            for trace, cells in ((case.edited, case.edited_cells), (case.original, case.original_cells))
        )
    )


def _encode(dictionary: Dictionary, rows_tnc: Tensor) -> Tensor:
    return dictionary.encode(rows_tnc.flatten(0, 1)).unflatten(0, rows_tnc.shape[:2])


def select_features(
    encoded: Encoded, *, k: int, pool: str, steps: str, unit_norm: bool = False
) -> dict[Site, Selected]:
    """On and off features of a case at every site: see `riebench.selection.select`."""
    mu_edited, mu_original = (
        {site: mean_features(features, steps, unit_norm) for site, features in side.items()}
        for side in (encoded.edited, encoded.original)
    )
    return select(mu_edited, mu_original, k, pool)


@torch.no_grad()
def static_transport(
    case: Case,
    dictionaries: Mapping[Site, Dictionary],
    encoded: Encoded,
    selected: Mapping[Site, Selected],
    strength: float,
) -> Intervention:
    """D = strength * (z_e[on] W_dec[on] at the edited region's cells - z_o[off] W_dec[off] at the original's).

    No bias; values from the unintervened traces, each at its own place (protocol §6, "static").
    """
    additions = {}
    for site, dictionary in dictionaries.items():
        added = torch.zeros_like(case.original[site])
        for sign, numbers, z_tnf, cells in (
            (strength, selected[site].on, encoded.edited[site], case.edited_cells[site.block]),
            (-strength, selected[site].off, encoded.original[site], case.original_cells[site.block]),
        ):
            kept = torch.zeros_like(z_tnf)
            kept[..., numbers] = z_tnf[..., numbers]
            moved = sign * dictionary.decode_linear(kept.flatten(0, 1)).unflatten(0, kept.shape[:2])
            added[:, :, cells] += moved.permute(0, 2, 1)
        additions[site] = added
    return Intervention(additions, count_features(selected))


def everything(dictionaries: Mapping[Site, Dictionary]) -> dict[Site, Selected]:
    """Every feature on and off: with `Identity` dictionaries, the dense patch."""
    return {
        site: Selected(torch.arange(dictionary.num_features), torch.arange(dictionary.num_features))
        for site, dictionary in dictionaries.items()
    }


def count_features(selected: Mapping[Site, Selected]) -> dict[str, int]:
    """Block -> features turned on and off there."""
    counts: dict[str, int] = {}
    for site, chosen in selected.items():
        counts[site.block] = counts.get(site.block, 0) + chosen.count
    return counts
