"""SAE features chosen from the two prompts alone: no edited image is seen (protocol §10).

Every other method that edits looks at the edited image, and so is an oracle. This one asks a text index
(`riebench.methods.text_index`) which features go with what the edited prompt says and the original one does not. It
sees the original image's trace and its region; for an object that is to be added, which has no place there yet, the
protocol takes the edited image's region as the original's, so there alone it is told where.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor

from riebench.backbones.family import Site
from riebench.core.errors import UserError
from riebench.core.values import Range
from riebench.generation.interventions import Addition, Intervention
from riebench.methods.latents import Region
from riebench.methods.method import Case
from riebench.methods.selection import Selected
from riebench.methods.text_index import TextIndex, score_features
from riebench.methods.transport import Transport, count_features
from sae_models.dictionary import Dictionary, decode_some

SUPPORTED = ("strength", "only_add", "window", "branch")  # of Transport's settings


@dataclass(frozen=True)
class TextSelected(Transport):
    """Moves SAE features that a text index names. Raises `UserError` for settings of `Transport` that need an edited
    trace."""

    strength: float = 2.0
    k: Annotated[int, Range(1)] = 16
    """The most features turned on, and off, in each block; over all blocks where pool is "all"."""
    pool: Literal["", "block", "all"] = ""
    name: str = "text-selected"
    sites: ClassVar[str] = "block"
    select_on: ClassVar[str] = "text"
    sees_edited_image: ClassVar[bool] = False
    needs: ClassVar[tuple[str, ...]] = ("text index",)

    def __post_init__(self) -> None:
        super().__post_init__()
        for setting in fields(Transport):
            value = getattr(self, setting.name)
            if setting.name not in SUPPORTED and value != setting.default:
                raise UserError(
                    f"features chosen from text cannot be moved with {setting.name}={value!r}",
                    remedy="leave it out: there is no edited trace to take values from",
                )

    @torch.no_grad()
    def plan(self, case: Case) -> Intervention:
        """Returns the intervention that adds on features with their typical value at every cell of the region, and
        takes off features away with the value that they have in each cell. Raises `UserError` for a text index that is
        not of the dictionary."""
        saes = {site: case.sae(site.block) for site in case.original}
        indices = {site: _fitting(case.text_index(site.block), sae, site) for site, sae in saes.items()}
        cells = {site: case.original_cells[site.block] for site in saes}
        region = Region(case, "original", saes)
        present = region.present(saes)
        vectors = [case.text(prompt) for prompt in (case.edit.edited_prompt, case.edit.original_prompt)]
        scores = {s: score_features(index, *vectors).to(present[s].device) for s, index in indices.items()}
        on = self._highest(
            {site: score.where(indices[site].active.to(score.device) > 0, 0) for site, score in scores.items()}
        )
        off = self._highest({site: -score.where(present[site], 0) for site, score in scores.items()})
        selected = {site: Selected(on[site], off[site][:0] if self.only_add else off[site]) for site in saes}
        additions = {}
        for site, sae in saes.items():
            on, off = selected[site].on, selected[site].off
            off_tnk = region.of({site: off})[site]
            on_tnk = indices[site].typical[on.cpu()].to(off_tnk).expand(*off_tnk.shape[:2], -1)
            moved_nk = torch.cat([on_tnk, -off_tnk], dim=2).flatten(0, 1)
            rows_nc = self.strength * decode_some(sae, torch.cat([on, off]), moved_nk)
            rows_tnc = rows_nc.unflatten(0, off_tnk.shape[:2])
            additions[site] = Addition(cells[site].nonzero().flatten(), rows_tnc.to(case.original[site].dtype))
        return Intervention(
            additions,
            features=count_features(selected),
            chosen={site.name: {"on": s.on.tolist(), "off": s.off.tolist()} for site, s in selected.items()},
            branch=self.branch,
            window=self.window,
        )

    def _highest(self, scores: Mapping[Site, Tensor]) -> dict[Site, Tensor]:
        """Returns the numbers of the features with the k highest scores above zero, of each site or of all together."""
        groups = [list(scores)] if self.pool == "all" else [[site] for site in scores]
        found = {}
        for sites in groups:
            joined = torch.cat([scores[site] for site in sites])
            best = torch.zeros_like(joined, dtype=torch.bool)
            best[joined.topk(min(self.k, len(joined))).indices] = True
            parts = (best & (joined > 0)).split([len(scores[site]) for site in sites])
            found |= {site: part.nonzero().flatten() for site, part in zip(sites, parts, strict=True)}
        return found


def _fitting(index: TextIndex, dictionary: Dictionary, site: Site) -> TextIndex:
    if len(index.directions) != dictionary.num_features:
        raise UserError(
            f"the text index of {site.block} has {len(index.directions)} features, its dictionary"
            f" {dictionary.num_features}",
            remedy="run `riebench index-text` again",
        )
    return index
