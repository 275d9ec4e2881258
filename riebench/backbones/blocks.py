"""The blocks of a loaded denoiser: where they are, what sites they have, and how large those are."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from riebench.backbones.family import LAYERED, Family, Place, Site
from riebench.core.errors import UserError


class Blocks:
    """Finds the blocks of one denoiser by the places that its family names."""

    def __init__(self, family: Family, denoiser: nn.Module) -> None:
        self.family, self.denoiser = family, denoiser

    def module(self, block: str) -> nn.Module:
        """Returns a block's module. Raises `UserError` when the family or this denoiser has none there."""
        place = self.family.place(block)
        try:
            return self.denoiser.get_submodule(place.path)
        except AttributeError as error:
            there = [name for name, other in self.family.places.items() if _has(self.denoiser, other.path)]
            raise UserError(
                f"this {type(self.denoiser).__name__} has no block {block!r}",
                remedy=f"use blocks out of {', '.join(there)}"
                if there
                else f"use a model of the {self.family.name} kind",
            ) from error

    def layer(self, site: Site) -> nn.Module:
        """Returns the module that puts out a layer's neurons or attention, `[b, cells, C]`. Raises `UserError` for a
        layer that the block has not."""
        module = self.module(site.block)
        path = self._pattern(site.block, site.kind).format(layer=site.layer)
        if not path or not _has(module, path):
            raise UserError(
                f"{site.block} has no {site.kind} of layer {site.layer}",
                remedy=f"it has {self.num_layers(site.block, site.kind)} layers",
            )
        return module.get_submodule(path)

    def _pattern(self, block: str, kind: str) -> str:
        return getattr(self.family.place(block), kind)

    def num_layers(self, block: str, kind: str = "neurons") -> int:
        """Returns how many layers of a kind (`family.LAYERED`) a block has."""
        module, pattern = self.module(block), self._pattern(block, kind)
        layer = 0
        while pattern and _has(module, pattern.format(layer=layer)):
            layer += 1
        return layer

    def sites(self, blocks: Iterable[str], kind: str) -> tuple[Site, ...]:
        """Returns the sites of a kind (`family.KINDS`) in these blocks; layers are counted in the model."""
        if kind in LAYERED:
            return tuple(Site(block, kind, layer) for block in blocks for layer in range(self.num_layers(block, kind)))
        return tuple(Site(block, kind) for block in blocks)

    def width(self, site: Site) -> int:
        """Returns the number of channels C of a site."""
        module = self.module(site.block)
        if site.kind == "neurons":
            return self.family.neuron_channels(module, site.layer)
        return (self.family.text_channels if site.kind == "text" else self.family.channels)(module)

    def grids(self, blocks: Iterable[str], height: int, width: int, latent_pixels: int) -> dict[str, tuple[int, int]]:
        """Returns block -> cells (high, wide) for pictures of so many pixels.

        latent_pixels: pixels a latent cell, `pipeline.vae_scale_factor`.
        """
        paths = {block: self.family.place(block).path for block in blocks}
        found = self.family.grids(self.denoiser, height, width, latent_pixels, paths.values())
        return {block: found[path] for block, path in paths.items()}

    def trace_bytes(
        self,
        blocks: Iterable[str],
        kind: str,
        steps: int,
        size: tuple[int, int],
        latent_pixels: int,
        dtype: torch.dtype,
    ) -> int:
        """Returns the bytes of one picture's trace of the blocks, of one row; with guidance a picture has two rows.

        kind: as in `sites`; the prompt's tokens are counted as if there were one for each cell. size: pixels (high,
        wide). dtype: of the denoiser, in which traces are kept.
        """
        blocks = tuple(blocks)
        grids = self.grids(blocks, *size, latent_pixels)
        cells = {block: rows * columns for block, (rows, columns) in grids.items()}
        values = sum(self.width(site) * cells[site.block] for site in self.sites(blocks, kind))
        return values * steps * dtype.itemsize

    def stream_of(self, block: str, output: object) -> Tensor:
        """Returns the image stream in a block's output, as the module lays it out."""
        return output[self.family.place(block).output] if isinstance(output, tuple) else output.sample

    def with_stream(self, block: str, output: object, stream: Tensor) -> object:
        """Returns a block's output with another image stream."""
        if not isinstance(output, tuple):
            return type(output)(sample=stream)
        place = self.family.place(block).output
        return (*output[:place], stream, *output[place + 1 :])


def to_cells(stream: Tensor, place: Place) -> Tensor:
    """Returns a view of an image stream, of any dense layout, as `[b, cells, C]`, cells in reading order."""
    return stream.permute(0, 2, 3, 1).flatten(1, 2) if place.layout == "map" else stream


def _has(module: nn.Module, path: str) -> bool:
    try:
        module.get_submodule(path)
    except AttributeError:
        return False
    return True
