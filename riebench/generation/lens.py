"""SDLens: see and edit what a U-Net's spatial transformers add to their input, while images are generated.

A *site* is a place that can be traced and added to:
- the update of a block: output - input of a `Transformer2DModel`, `[batch, C, h, w]`;
- the neurons of one layer of a block: the GEGLU output `transformer_blocks.{l}.ff.net.0`, `[batch, h*w, width]`
  in the model, `[batch, width, h, w]` here.
Hooks are on only inside `with Lens(...)`, and come off after an exception too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from riebench.backbones.table import BLOCKS
from riebench.core.errors import UserError


@dataclass(frozen=True)
class Site:
    """A traced and editable place. `layer` is None for the block's update, else the layer whose neurons are meant."""

    block: str
    layer: int | None = None

    @property
    def kind(self) -> str:
        """As in `find_sites` and `Method.sites`."""
        return "update" if self.layer is None else "neurons"

    @property
    def name(self) -> str:
        return self.block if self.layer is None else f"{self.block}/neurons.{self.layer}"


def block_module(unet: nn.Module, block: str) -> nn.Module:
    """The `Transformer2DModel` of a block. Raises `UserError` when this U-Net has none there."""
    try:
        return unet.get_submodule(BLOCKS[block])
    except (KeyError, AttributeError) as error:
        raise UserError(
            f"this U-Net has no block {block!r}", remedy=f"use an SDXL-shaped U-Net and blocks of {', '.join(BLOCKS)}"
        ) from error


def find_sites(unet: nn.Module, blocks: Sequence[str], kind: str) -> tuple[Site, ...]:
    """The sites of a kind ("update" or "neurons") in these blocks; layers are counted in the model."""
    if kind == "update":
        return tuple(Site(block) for block in blocks)
    if kind == "neurons":
        layers = {block: len(block_module(unet, block).transformer_blocks) for block in blocks}
        return tuple(Site(block, layer) for block in blocks for layer in range(layers[block]))
    raise UserError(f"there are no sites of kind {kind!r}", remedy="use 'update' or 'neurons'")


@dataclass
class Trace:
    """What was seen at each site: one tensor `[batch, C, h, w]` a step."""

    values: dict[Site, list[Tensor]] = field(default_factory=dict)
    inputs: dict[Site, list[Tensor]] = field(default_factory=dict)
    """Inputs of the blocks, for update sites; a block's output is its input + its update."""

    def stacked(self) -> dict[Site, Tensor]:
        """Site -> `[batch, steps, C, h, w]`."""
        return {site: torch.stack(steps, dim=1) for site, steps in self.values.items()}


class Lens:
    """Captures sites, and adds to sites, while active. The sampler sets `step`; nothing here counts calls.

    capture: sites to record, as the U-Net itself made them: a recorded update does not hold what the lens adds.
    additions: site -> `[batch, steps, C, h, w]`, added at the step that the sampler says it is at.
    rewrites: site -> functions (running value `[batch, C, h, w]`, step) -> what is added to it, of the same shape.
    """

    def __init__(
        self,
        unet: nn.Module,
        capture: Sequence[Site] = (),
        additions: Mapping[Site, Tensor] | None = None,
        rewrites: Mapping[Site, Sequence[Callable[[Tensor, int], Tensor]]] | None = None,
    ) -> None:
        self.unet, self.capture = unet, tuple(capture)
        self.additions, self.rewrites = dict(additions or {}), dict(rewrites or {})
        self.step = 0
        self.trace = Trace()
        self._grids: dict[str, tuple[int, int]] = {}
        self._handles: list = []

    def __enter__(self) -> Lens:
        try:
            for site in dict.fromkeys((*self.capture, *self.additions, *self.rewrites)):
                self._attach(site)
        except BaseException:
            self._detach()
            raise
        return self

    def __exit__(self, *exc) -> None:
        self._detach()

    def _detach(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _attach(self, site: Site) -> None:
        block = block_module(self.unet, site.block)
        if site.layer is None:
            hook = block.register_forward_hook(lambda _m, a, k, out: self._on_block(site, a, k, out), with_kwargs=True)
            self._handles.append(hook)
            return
        self._handles.append(
            block.register_forward_pre_hook(lambda _m, a, k: self._note_grid(site.block, a, k), with_kwargs=True)
        )
        neurons = block.transformer_blocks[site.layer].ff.net[0]
        self._handles.append(neurons.register_forward_hook(lambda _m, _a, out: self._on_neurons(site, out)))

    def _note_grid(self, block: str, args: tuple, kwargs: dict) -> None:
        self._grids[block] = tuple(_hidden_states(args, kwargs).shape[-2:])

    def _on_block(self, site: Site, args: tuple, kwargs: dict, output):
        hidden = _hidden_states(args, kwargs)
        tensor = output[0] if isinstance(output, tuple) else output.sample
        if site in self.capture:
            self.trace.inputs.setdefault(site, []).append(hidden.detach())
            self.trace.values.setdefault(site, []).append((tensor - hidden).detach())
        if site not in self.additions and site not in self.rewrites:
            return None
        edited = tensor + self._added(site, tensor, lambda: tensor - hidden)
        return (edited, *output[1:]) if isinstance(output, tuple) else type(output)(sample=edited)

    def _on_neurons(self, site: Site, output: Tensor):
        height, width = self._grids[site.block]
        grid = output.detach().transpose(1, 2).reshape(len(output), -1, height, width)
        if site in self.capture:
            self.trace.values.setdefault(site, []).append(grid)
        if site not in self.additions and site not in self.rewrites:
            return None
        return output + self._added(site, grid, lambda: grid).flatten(2).transpose(1, 2)

    def _added(self, site: Site, like: Tensor, running: Callable[[], Tensor]) -> Tensor:
        """What is added at a site, `[batch, C, h, w]`. running: the value there, as the U-Net itself makes it."""
        parts = []
        if site in self.additions:
            rows = self.additions[site]
            if len(rows) != len(like):
                raise ValueError(f"{site.name}: additions for {len(rows)} rows meet a batch of {len(like)}")
            parts.append(rows[:, self.step].to(like))
        if self.rewrites.get(site):
            value = running()
            parts += [rewrite(value, self.step) for rewrite in self.rewrites[site]]
        return sum(parts)


def _hidden_states(args: tuple, kwargs: dict) -> Tensor:
    return args[0] if args else kwargs["hidden_states"]
