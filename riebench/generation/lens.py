"""SDLens: see and edit what the blocks of a denoiser compute, while images are generated.

A `Site` is a place that can be traced and added to: the update of a block (output - input), its stream (output), the
neurons or the attention to the prompt of one of its layers, or the prompt's states that it reads. Here all of them are
`[batch, cells, C]`, cells in reading order, or tokens in their place. Hooks are on only inside
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


def add_at(view_nc: Tensor, cells: Tensor, channels: Tensor | None, values_nm: Tensor) -> None:
    """Adds values `[n, m]` in place at some cells of `[cells, C]`, in all channels (None) or in m of them; each cell
    and each channel is named once."""
    where = (cells,) if channels is None else (cells[:, None], channels)
    view_nc[where] += values_nm.to(view_nc)


@dataclass(frozen=True, eq=False)
class Part:
    """Says what is added at some rows and cells of a batch, each pair once."""

    rows: Tensor
    """int64 `[n]`."""
    cells: Tensor
    """int64 `[n]`."""
    values: Tensor
    """`[steps, n, C]`, or `[steps, n, m]` where m channels are named."""
    channels: Tensor | None = None
    """int64 `[m]`; None for all."""
    sign: int = 1
    """What the values are multiplied with."""
    steps: tuple[int, ...] | None = None
    """At which it is added; None for all."""
    replaces: bool = False
    """Whether the values, of all channels, stand in the place of what is there."""


@dataclass(frozen=True)
class RowAdditions:
    """Says what is added at one site of a batch, in parts. Each part's values are read where they lie, step by step:
    nothing is as large as the batch's sites."""

    batch: int
    """How many rows there are."""
    parts: Sequence[Part]

    def add_to(self, stream_bnc: Tensor, step: int) -> None:
        """Adds in place, to a tensor or a view of one. Raises `ValueError` for a batch of another size."""
        if len(stream_bnc) != self.batch:
            raise ValueError(f"additions for {self.batch} rows meet a batch of {len(stream_bnc)}")
        now = [part for part in self.parts if part.steps is None or step in part.steps]
        there = stream_bnc.device
        for replaces in (False, True):
            whole = [part for part in now if part.channels is None and part.replaces == replaces]
            if whole:  # together: on a GPU each operation has its price
                places = tuple(
                    torch.cat([getattr(part, name) for part in whole]).to(there) for name in ("rows", "cells")
                )
                values = torch.cat([part.sign * part.values[step].to(stream_bnc) for part in whole])
                stream_bnc[places] = values if replaces else stream_bnc[places] + values
        for part in now:
            if part.channels is not None:
                places = part.rows.to(there)[:, None], part.cells.to(there)[:, None], part.channels.to(there)
                stream_bnc[places] += part.sign * part.values[step].to(stream_bnc)


def in_order(sites: Iterable[Site]) -> list[Site]:
    """Returns sites in the one order in which they are added to: a sum's bits depend on it, and an image's may depend
    neither on the order in which its sites were given, nor on what else is in the batch or is captured."""
    return sorted(sites, key=lambda site: site.name)


class Lens:
    """Captures sites, and adds to sites, while active. The sampler sets `step`; nothing here counts calls.

    capture: sites to record, as the denoiser itself made them: what is recorded does not hold what the lens adds there;
    or site -> function of the value there, of what is kept of it.
    additions: site -> what is added, at the step that the sampler says it is at. live: site -> functions of the value
    there. Raises `UserError` on entering where the denoiser has no such site.
    """

    def __init__(
        self,
        blocks: Blocks,
        capture: Sequence[Site] | Mapping[Site, Callable[[Tensor], Any]] = (),
        additions: Mapping[Site, RowAdditions] | None = None,
        live: Mapping[Site, Sequence[Live]] | None = None,
    ) -> None:
        self.blocks = blocks
        self.capture = capture if isinstance(capture, Mapping) else dict.fromkeys(capture, Tensor.detach)
        self.additions, self.live = dict(additions or {}), dict(live or {})
        self.step = 0
        self.seen: dict[Site, list[Any]] = {}
        """Site -> `[batch, cells, C]`, or what is kept of it, of each call so far."""
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

    def take(self) -> dict[Site, list[Any]]:
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
                module = self.blocks.layer(site)
                self._handles.append(module.register_forward_hook(self._layer_hook(site)))
            if site.kind == "text":
                hook, module = self._text_hook(site), self.blocks.module(block)
                self._handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))
        whole = [site for site in sites if not site.inside]
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

    def _layer_hook(self, site: Site) -> Callable:
        def hook(_module, _args, output: Tensor | tuple) -> Tensor | tuple | None:
            several = isinstance(output, tuple)
            value = output[0] if several else output
            edited = self._edited(value, lambda found: found, {site: lambda: value.detach()})
            if edited is value:
                return None
            return (edited, *output[1:]) if several else edited

        return hook

    def _text_hook(self, site: Site) -> Callable:
        name = self.blocks.family.place(site.block).text

        def hook(_module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
            value = kwargs[name]
            edited = self._edited(value, lambda found: found, {site: lambda: value.detach()})
            return None if edited is value else (args, {**kwargs, name: edited})

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
                self.seen.setdefault(site, []).append(self.capture[site](value()))
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
