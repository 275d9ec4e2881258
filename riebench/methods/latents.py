"""Latents of regions: what dictionaries say of the cells of an image's region, held as sparse as it is."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from riebench.backbones.family import Site
from riebench.methods.method import Case, Rows
from sae_models.dictionary import Dictionary, Identity

AT_ONCE = 2**24  # latents that are written out at a time: 64 MB


class Latents:
    """Latents `[steps, n, F]`, of which only those that are not zero are held where they are few."""

    def __init__(self, dictionary: Dictionary, rows_tnc: Tensor) -> None:
        """Encodes rows, in steps that fit into `AT_ONCE` together."""
        self.shape = (*rows_tnc.shape[:2], dictionary.num_features)
        each = max(1, AT_ONCE // max(1, self.shape[1] * self.shape[2]))
        parts = [_encode(dictionary, part_tnc) for part_tnc in rows_tnc.split(each)]
        self._dense = torch.cat(parts) if not all(map(_is_sparse, parts)) else None
        if self._dense is None:
            found = [part.flatten(0, 1).nonzero(as_tuple=True) for part in parts]
            starts = range(0, len(rows_tnc), each)
            self._values = torch.cat([p.flatten(0, 1)[where] for p, where in zip(parts, found, strict=True)])
            self._rows = torch.cat(
                [rows + start * self.shape[1] for (rows, _), start in zip(found, starts, strict=True)]
            )
            self._features = torch.cat([features for _, features in found])

    def first(self, steps: int) -> Tensor:
        """Returns those of the first steps, written out: `[steps, n, F]`."""
        if self._dense is not None:
            return self._dense[:steps]
        count = min(steps, self.shape[0])
        z_nf = self._values.new_zeros(count * self.shape[1], self.shape[2])
        kept = self._rows < len(z_nf)
        z_nf[self._rows[kept], self._features[kept]] = self._values[kept]
        return z_nf.unflatten(0, (count, self.shape[1]))

    def of(self, numbers: Tensor) -> Tensor:
        """Returns those of k features, `[steps, n, k]`."""
        if self._dense is not None:
            return self._dense[..., numbers]
        place = self._features.new_full((self.shape[2],), -1)
        place[numbers] = torch.arange(len(numbers), device=place.device)
        columns = place[self._features]
        kept = columns >= 0
        z_nk = self._values.new_zeros(self.shape[0] * self.shape[1], len(numbers))
        z_nk[self._rows[kept], columns[kept]] = self._values[kept]
        return z_nk.unflatten(0, self.shape[:2])

    def present(self) -> Tensor:
        """Returns which features are above zero anywhere, bool `[F]`."""
        if self._dense is not None:
            return (self._dense > 0).flatten(0, 1).any(dim=0)
        found = self._features.new_zeros(self.shape[2], dtype=torch.bool)
        found[self._features[self._values > 0]] = True
        return found


class Region:
    """What dictionaries say of the region of one of a case's images, each site encoded once a case."""

    def __init__(self, case: Case, side: str, dictionaries: Mapping[Site, Dictionary]) -> None:
        """side: "original" or "edited"."""
        self._case, self._side, self._dictionaries = case, side, dictionaries
        self._trace, self._cells = getattr(case, side), getattr(case, f"{side}_cells")

    def first(self, steps: int, *, alone: bool = False) -> dict[Site, Tensor]:
        """Returns site -> the latents of the first steps, `[steps, n, F]`. alone: no others will be asked for."""
        channels, coded = self._parted(self._dictionaries)
        found = {site: rows.float() for site, rows in self._rows(channels, steps).items()}
        return found | {site: self._latents(site, steps if alone else None).first(steps) for site in coded}

    def of(self, numbers: Mapping[Site, Tensor]) -> dict[Site, Tensor]:
        """Returns site -> the latents of some of its features, `[steps, n, k]`; of channels themselves in the trace's
        own type."""
        channels, coded = self._parted(numbers)
        found = self._rows(channels, None, {site: numbers[site] for site in channels})
        return found | {site: self._latents(site, None).of(numbers[site]) for site in coded}

    def present(self, sites: Iterable[Site]) -> dict[Site, Tensor]:
        """Returns site -> which features are above zero anywhere, bool `[F]`."""
        return {site: self._latents(site, None).present() for site in sites}

    def like(self, site: Site) -> torch.dtype:
        """Returns the type of a site's trace."""
        return self._trace.dtype if isinstance(self._trace, Rows) else self._trace[site].dtype

    def _parted(self, sites: Mapping[Site, object]) -> tuple[list[Site], list[Site]]:
        """Returns the sites whose features are the channels themselves, and the others."""
        channels = [site for site in sites if isinstance(self._dictionaries[site], Identity)]
        return channels, [site for site in sites if site not in channels]

    def _rows(
        self, sites: Sequence[Site], steps: int | None, channels: Mapping[Site, Tensor] | None = None
    ) -> dict[Site, Tensor]:
        if isinstance(self._trace, Rows):
            found = self._trace.rows(self._cells, steps, channels) if sites else {}
            return {site: found[site] for site in sites}
        rows = {site: self._trace[site][:steps][:, self._cells[site.block]] for site in sites}
        return rows if channels is None else {site: value[..., channels[site]] for site, value in rows.items()}

    def _latents(self, site: Site, steps: int | None) -> Latents:
        """Returns a site's latents, of the first steps alone or of all (None). They are kept with the case for as long
        as there is the dictionary."""
        dictionary = self._dictionaries[site]
        encoder = getattr(dictionary, "encoder", dictionary)
        kept = self._case.latents
        key, whole = ((id(encoder), site, self._side, asked) for asked in (steps, None))
        found = kept.get(whole) or kept.get(key)
        if found is None:
            rows_tnc = self._rows([site], steps)[site]
            found = weakref.ref(encoder, lambda _: kept.pop(key, None)), Latents(encoder, rows_tnc)
            kept[key] = found
        return found[1]


@torch.no_grad()
def _encode(dictionary: Dictionary, rows_tnc: Tensor) -> Tensor:
    return dictionary.encode(rows_tnc.flatten(0, 1).float()).unflatten(0, rows_tnc.shape[:2])


def _is_sparse(z_tnf: Tensor) -> bool:
    """Returns whether values with their places, three numbers each, are fewer than half of all."""
    return 6 * int(z_tnf.count_nonzero()) < z_tnf.numel()
