"""Family: how one kind of model is built, so that nothing outside `backbones/` has to know. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from riebench.core.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from torch import Tensor, nn

#: What can be read at a block, and added to. Adding to an update is adding to the stream; only what is read differs.
KINDS = {
    "update": "what the block adds to its input: output - input",
    "stream": "what the block puts out",
    "neurons": "the outputs of a feed-forward layer's hidden units, layer by layer",
    "attention": "what a layer's attention to the prompt puts out for the image, layer by layer",
    "text": "the prompt's states that the block reads; their tokens stand where other sites have cells",
}
#: The kinds that a block has in each of its layers.
LAYERED = ("neurons", "attention")


@dataclass(frozen=True)
class Site:
    """A place in a model that can be traced and added to. `layer` is given for the kinds in `LAYERED`, and only for
    them."""

    block: str
    kind: str = "update"
    """Out of `KINDS`."""
    layer: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UserError(
                f"there are no sites of kind {self.kind!r}{did_you_mean(self.kind, KINDS)}",
                remedy=f"use one of {', '.join(KINDS)}",
            )
        if (self.kind in LAYERED) != (self.layer is not None):
            raise UserError(
                f"a site of kind {self.kind} has layer {self.layer}",
                remedy=f"give a layer with {' and '.join(LAYERED)}",
            )

    @property
    def inside(self) -> bool:
        """Returns whether it lies within its block, so that the block computes with what is added there."""
        return self.kind in (*LAYERED, "text")

    @property
    def name(self) -> str:
        """Returns "mid.0", "mid.0/stream" or "mid.0/neurons.3"."""
        kind = "" if self.kind == "update" else f"/{self.kind}"
        return self.block + kind + ("" if self.layer is None else f".{self.layer}")

    @classmethod
    def parse(cls, name: str) -> Site:
        """Returns the site of a `name`; "mid.0/update" is "mid.0" spelt out. Raises `UserError` for what is none."""
        block, _, rest = name.partition("/")
        kind, _, layer = rest.partition(".")
        site = cls(block, kind or "update", int(layer) if layer.isdecimal() else None)
        if not block or name not in (site.name, f"{block}/update"):
            raise UserError(f"{name!r} is no site", remedy="write mid.0, mid.0/stream or mid.0/neurons.3")
        return site


@dataclass(frozen=True)
class Place:
    """Says where a block is in a denoiser, and what its module returns."""

    path: str
    """Path of its module, from the denoiser on."""
    layout: str = "map"
    """"map": the image stream is `[b, C, h, w]`; "tokens": it is `[b, cells, C]`."""
    output: int = 0
    """Which element of the module's output is the image stream."""
    neurons: str = ""
    """Path, from the module on, of the module that puts out the neurons of `{layer}`, as tokens; empty for none."""
    attention: str = ""
    """Likewise of the attention of `{layer}` to the prompt; where it puts out more, the image's tokens come first."""
    text: str = ""
    """The name by which the module is given the prompt's states `[b, tokens, e]`; empty where it is not."""


@dataclass(frozen=True)
class Outline:
    """Says what the configuration files of a pipeline tell, without its weights."""

    channels: Mapping[str, int]
    """Path of a block's module -> channels of its image stream."""
    size: tuple[int, int]
    """The model's own size of pictures, in pixels (high, wide)."""


@dataclass(frozen=True, eq=False)
class Family:
    """Says what models of one kind have in common. One file of `backbones/` describes one family."""

    name: str
    at: str
    """Where this description stands, as "module:name"."""
    pipeline: str
    """Class of its pipelines, as "module:class"."""
    autoencoder: str
    """Class of their autoencoders, as "module:class"."""
    options: Mapping[str, Any]
    """What its pipelines are made with beside their parts."""
    denoiser: str
    """The pipeline's part that denoises, by its attribute."""
    text_encoders: tuple[str, ...]
    """The parts that read prompts, likewise."""
    tokenizers: tuple[str, ...]
    places: Mapping[str, Place]
    """Block -> its place, in the order in which the denoiser runs them."""
    default_blocks: tuple[str, ...]
    """The blocks under test where none are named."""
    default_site: str
    """The kind of site that dictionaries read where none is named."""
    guided_rows: tuple[str, ...]
    """Under guidance, the branches of the rows in one call of the denoiser, in their order; each branch has all
    rows of the batch."""
    autoencoder_dtype: str
    """What the autoencoder decodes in, whatever the denoiser computes in; empty where it follows the denoiser."""
    decoding_bytes: int
    """Memory to decode a pixel in float32, beside the autoencoder's weights."""
    encode: Callable[[Any, Sequence[str]], dict[str, Tensor]]
    """(Pipeline, prompts) -> what its call takes of them: name -> tensor with a row for each prompt."""
    text: str
    """Which of these holds the tokens, `[b, tokens, e]`."""
    units: Callable[[nn.Module, Iterable[str]], dict[str, nn.Module]]
    """(Denoiser, paths of blocks) -> name -> module of what a replay records and replays as a whole, the blocks among
    them."""
    grids: Callable[[nn.Module, int, int, int, Iterable[str]], dict[str, tuple[int, int]]]
    """(Denoiser, pixels high, pixels wide, pixels a latent cell, paths of blocks) -> path -> cells (high, wide)."""
    channels: Callable[[nn.Module], int]
    """Module of a block -> channels of its image stream."""
    neuron_channels: Callable[[nn.Module, int], int]
    """(Module of a block, layer) -> neurons of that layer."""
    text_channels: Callable[[nn.Module], int]
    """Module of a block -> channels of the prompt's states that it reads."""
    compilable: Callable[[Any], list[nn.Module]]
    """Pipeline -> the modules that no hook looks into, which `torch.compile` may have."""
    outline: Callable[[Path], Outline]
    """Folder of a pipeline -> what its configuration files say. Raises `UserError` where they are missing or broken."""
    prepare: Callable[[Any, bool], None]
    """(Pipeline, whether its autoencoder is another than its own) -> None: what is done once it is loaded."""

    def __reduce__(self) -> tuple:
        """Returns what a family is pickled and copied as: the one that stands `at`."""
        return _standing_at, (self.at,)

    def place(self, block: str) -> Place:
        """Returns where a block is. Raises `UserError` for a name that is none of this family's."""
        if block not in self.places:
            raise UserError(
                f"unknown block {block!r}{did_you_mean(block, self.places)}",
                remedy=f"use blocks out of {', '.join(self.places)}",
            )
        return self.places[block]

    def in_order(self, blocks: Iterable[str]) -> tuple[str, ...]:
        """Returns the given blocks, each once, in the order in which the denoiser runs them. Raises `UserError` as
        `place` does."""
        named = {block: self.place(block) for block in blocks}
        return tuple(block for block in self.places if block in named)


def _standing_at(place: str) -> Family:
    module, _, name = place.partition(":")
    return getattr(import_module(module), name)


def blocks_text(blocks: Iterable[str]) -> str:
    """Returns blocks as in the `blocks` column of scores: joined by "+", "" for none."""
    return "+".join(blocks)
