"""Traces that are too large to be held: read again where, and of which channels, they are wanted.

The neurons of SDXL's blocks are 105 MB a picture and step, of which a method moves some hundred at the cells of one
region. So they are not kept when a case's pictures are made. The first step is computed again for what chooses among
them, and all steps once more for what was chosen; each time for all cases of a group together, since batches are filled
up. What is read is equal to the bit to what a whole trace holds.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from riebench.backbones.family import Site
from riebench.generation.sampler import Picks, Request, Sampler, Values


class Retraced(Mapping[Site, Tensor]):
    """The trace of one picture, which is read when it is asked for: some rows (`rows`), or a site as a whole."""

    def __init__(self, group: Group, request: Request, cells: Mapping[str, Tensor]) -> None:
        """cells: block -> the cells (bool) that will be asked for."""
        self.group, self.request, self.cells = group, request, cells
        self.first: Values = {}
        self.chosen: list[tuple[Mapping[Site, Tensor], Values]] = []
        """(Site -> numbers of channels, what was read of them: nothing before it is)."""
        self._whole: Values = {}

    @property
    def dtype(self) -> torch.dtype:
        """The type of its values."""
        return self.group.dtype

    @property
    def steps(self) -> int:
        """The steps of a generation."""
        return self.group.sampler.backbone.steps

    @property
    def widths(self) -> dict[Site, int]:
        """Site -> its channels."""
        return self.group.widths

    def within(self, blocks: Collection[str]) -> Part:
        """Returns the same in some blocks alone."""
        return Part(self, [site for site in self if site.block in blocks])

    def expect(self, channels: Mapping[Site, Tensor]) -> None:
        """Says which channels will be asked for, so that they are read together with what others expect."""
        self.chosen.append((channels, {}))

    def rows(
        self, cells: Mapping[str, Tensor], steps: int | None, channels: Mapping[Site, Tensor] | None
    ) -> dict[Site, Tensor]:
        """Returns site -> `[steps, n, C]` at the cells of its block (bool), of the first steps (None: all), in some
        channels (None: all)."""
        if any(not torch.equal(cells[site.block], self.cells[site.block]) for site in self):
            whole = {site: self[site][:steps][:, cells[site.block]] for site in self}
            return (
                whole if channels is None else {site: whole[site][..., numbers] for site, numbers in channels.items()}
            )
        if channels is None:
            if steps == 1 and not self.first:
                self.group.read_first()
            return self.first if steps == 1 else {site: self[site][:steps][:, cells[site.block]] for site in self}
        known = next((item for item in self.chosen if _equal(item[0], channels)), None)
        if known is None:
            known = (channels, {})
            self.chosen.append(known)
        if not known[1]:
            self.group.read_chosen()
        self.chosen = [item for item in self.chosen if item is not known]  # asked once, and large
        return known[1]

    def __getitem__(self, site: Site) -> Tensor:
        """Returns a site's whole trace `[steps, cells, C]`; all sites are read at once."""
        if site not in self.group.sites:
            raise KeyError(site)
        if not self._whole:
            self._whole = self.group.read_whole(self)
        return self._whole[site]

    def __iter__(self) -> Iterator[Site]:
        return iter(self.group.sites)

    def __len__(self) -> int:
        return len(self.group.sites)


class Part(Mapping[Site, Tensor]):
    """Some sites of the trace of one picture, which is read as a whole."""

    def __init__(self, whole: Retraced, sites: Sequence[Site]) -> None:
        self.whole, self.dtype, self.steps = whole, whole.dtype, whole.steps
        self.widths = {site: whole.widths[site] for site in sites}

    def rows(
        self, cells: Mapping[str, Tensor], steps: int | None, channels: Mapping[Site, Tensor] | None
    ) -> dict[Site, Tensor]:
        """Returns what `Retraced.rows` does, of these sites."""
        found = self.whole.rows(cells, steps, channels)
        return {site: found[site] for site in (self.widths if channels is None else channels)}

    def __getitem__(self, site: Site) -> Tensor:
        """Returns a site's whole trace `[steps, cells, C]`."""
        if site not in self.widths:
            raise KeyError(site)
        return self.whole[site]

    def __iter__(self) -> Iterator[Site]:
        return iter(self.widths)

    def __len__(self) -> int:
        return len(self.widths)


class Group:
    """Pictures whose traces are read together."""

    def __init__(self, sampler: Sampler, sites: Sequence[Site]) -> None:
        self.sampler, self.sites = sampler, tuple(sites)
        self.dtype = sampler.denoiser.dtype  # asked once: diffusers walks through all weights for it
        self.widths = {site: sampler.blocks.width(site) for site in self.sites}
        self.members: list[Retraced] = []

    def add(self, request: Request, cells: Mapping[str, Tensor]) -> Retraced:
        """Returns the trace of one more picture. cells: block -> the cells (bool) that will be asked for."""
        self.members.append(Retraced(self, request, cells))
        return self.members[-1]

    def read_first(self) -> None:
        """Reads the first step of every picture, at its cells."""
        new = [member for member in self.members if not member.first]
        picks = [{site: (member.cells[site.block], None) for site in self.sites} for member in new]
        for member, found in zip(new, self._read(new, picks, 1), strict=True):
            member.first = found

    def read_chosen(self) -> None:
        """Reads the channels that are expected of every picture, at its cells."""
        new = [member for member in self.members if any(not found for _, found in member.chosen)]
        wanted = [{site: _united(member.chosen, site) for site in self.sites} for member in new]
        picks = [
            {site: (member.cells[site.block], numbers) for site, numbers in numbers_of.items()}
            for member, numbers_of in zip(new, wanted, strict=True)
        ]
        for member, numbers_of, read in zip(new, wanted, self._read(new, picks, None), strict=True):
            for channels, found in member.chosen:
                for site, numbers in channels.items():
                    here = numbers.to(read[site].device)
                    alone = torch.equal(here, numbers_of[site].to(here.device))  # as mostly: nothing is copied
                    columns = slice(None) if alone else torch.searchsorted(numbers_of[site], here)
                    found[site] = read[site][..., columns]

    def forget_first(self) -> None:
        """Forgets what was read of first steps, once units were chosen."""
        for member in self.members:
            member.first = {}

    def read_whole(self, member: Retraced) -> Values:
        """Returns the whole trace of one picture."""
        every = {block: torch.ones_like(cells) for block, cells in member.cells.items()}
        picks: Picks = {site: (every[site.block], None) for site in self.sites}
        return self._read([member], [picks], None)[0]

    def _read(self, members: Sequence[Retraced], picks: Sequence[Picks], steps: int | None) -> list[Values]:
        return self.sampler.read([member.request for member in members], picks, steps)


def _united(chosen: Sequence[tuple[Mapping[Site, Tensor], Values]], site: Site) -> Tensor:
    """Returns every number that is wanted of a site, ascending."""
    numbers = [channels[site] for channels, _ in chosen if site in channels]
    return torch.cat(numbers).unique() if numbers else torch.zeros(0, dtype=torch.int64)


def _equal(one: Mapping[Site, Tensor], other: Mapping[Site, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[site], other[site]) for site in one)
