"""SDLens: see and edit what the blocks of a denoiser compute, while images are generated.

A `Site` is a place that can be traced and added to: the update of a block (output - input), its stream (output), or the
neurons of one of its layers. Here all of them are `[batch, cells, C]`, cells in reading order. Hooks are on only inside
`with Lens(...)`, and come off after an exception too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from riebench.backbones.blocks import Blocks, to_cells
from riebench.backbones.family import Site

#: (Value at a site `[batch, cells, C]`, step) -> what is added there, of the same shape.
Live = Callable[[Tensor, int], Tensor]


@dataclass(frozen=True)
class RowAdditions:
    """Says what is added at one site of a batch: m pairs of a row and a cell, each pair once, with a vector a step."""

    batch: int
    """How many rows there are."""
    rows: Tensor
    """int64 `[m]`."""
    cells: Tensor
    """int64 `[m]`."""
    values: Tensor
    """`[steps, m, C]`."""

    def add_to(self, stream_bnc: Tensor, step: int) -> None:
        """Adds in place, to a tensor or a view of one. Raises `ValueError` for a batch of another size."""
        if len(stream_bnc) != self.batch:
            raise ValueError(f"additions for {self.batch} rows meet a batch of {len(stream_bnc)}")
        stream_bnc[self.rows, self.cells] += self.values[step].to(stream_bnc)


def in_order(sites: Iterable[Site]) -> list[Site]:
    """Returns sites in the one order in which they are added to: a sum's bits depend on it, and an image's may depend
    neither on the order in which its sites were given, nor on what else is in the batch or is captured."""
    return sorted(sites, key=lambda site: site.name)


class Lens:
    """Captures sites, and adds to sites, while active. The sampler sets `step`; nothing here counts calls.

    capture: sites to record, as the denoiser itself made them: what is recorded does not hold what the lens adds there.
    additions: site -> what is added, at the step that the sampler says it is at. live: site -> functions of the value
    there. Raises `UserError` on entering where the denoiser has no such site.
    """

    def __init__(
        self,
        blocks: Blocks,
        capture: Sequence[Site] = (),
        additions: Mapping[Site, RowAdditions] | None = None,
        live: Mapping[Site, Sequence[Live]] | None = None,
    ) -> None:
        self.blocks, self.capture = blocks, tuple(capture)
        self.additions, self.live = dict(additions or {}), dict(live or {})
        self.step = 0
        self.seen: dict[Site, list[Tensor]] = {}
        """Site -> `[batch, cells, C]` of each call so far."""
        self._handles: list = []

    def __enter__(self) -> Lens:
        try:
            sites = in_order({*self.capture, *self.additions, *self.live})
            for block in dict.fromkeys(site.block for site in sites):
                self._attach(block, [site for site in sites if site.block == block])
        except BaseException:
            self._detach()
            raise
        return self

    def __exit__(self, *exc) -> None:
        self._detach()

    def trace(self) -> dict[Site, Tensor]:
        """Returns site -> `[batch, steps, cells, C]` of the calls so far, each of which is taken for a step."""
        return {site: torch.stack(steps, dim=1) for site, steps in self.seen.items()}

    def take(self) -> dict[Site, list[Tensor]]:
        """Returns what was `seen`, and forgets it."""
        seen, self.seen = self.seen, {}
        return seen

    def _detach(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _attach(self, block: str, sites: Sequence[Site]) -> None:
        for site in sites:
            if site.layer is not None:
                module = self.blocks.neurons(block, site.layer)
                self._handles.append(module.register_forward_hook(self._neuron_hook(site)))
        whole = [site for site in sites if site.layer is None]
        if whole:
            module = self.blocks.module(block)
            self._handles.append(module.register_forward_hook(self._block_hook(block, whole), with_kwargs=True))

    def _block_hook(self, block: str, sites: Sequence[Site]) -> Callable:
        place = self.blocks.family.place(block)

        def hook(_module, args: tuple, kwargs: dict, output: Any) -> Any:
            stream = self.blocks.stream_of(block, output)
            hidden = args[0] if args else kwargs["hidden_states"]
            values = {
                "update": lambda: to_cells(stream - hidden, place),
                "stream": lambda: to_cells(stream, place),
            }
            edited = self._edited(stream, lambda found: to_cells(found, place), {s: values[s.kind] for s in sites})
            return None if edited is stream else self.blocks.with_stream(block, output, edited)

        return hook

    def _neuron_hook(self, site: Site) -> Callable:
        def hook(_module, _args, output: Tensor) -> Tensor | None:
            edited = self._edited(output, lambda found: found, {site: lambda: output.detach()})
            return None if edited is output else edited

        return hook

    def _edited(
        self, stream: Tensor, cells_of: Callable[[Tensor], Tensor], values: Mapping[Site, Callable[[], Tensor]]
    ) -> Tensor:
        """Returns the stream with what is added to it at these sites; the same object where nothing is.

        cells_of: stream -> a view of it, `[b, cells, C]`. values: site -> the value there,
        as the denoiser itself made it.
        """
        for site, value in values.items():
            if site in self.capture:
                self.seen.setdefault(site, []).append(value().detach())
        edited = stream
        for site in values:
            if site not in self.additions and not self.live.get(site):
                continue
            if edited is stream:
                edited = stream.clone()
            view = cells_of(edited)
            if site in self.additions:
                self.additions[site].add_to(view, self.step)
            for live in self.live.get(site, ()):
                view += live(values[site](), self.step)
        return edited
