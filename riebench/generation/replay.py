"""Replay: the first step of an edited generation, computed from where the edit begins.

At the first step a generation and its edited copies have the same latents and the same prompt, so every module before
the earliest edit returns what it returned for the unedited image. `Recorder` keeps those outputs; `Replay.predict` puts
them in the modules' places and lets the U-Net's own `forward` compute the rest. Rows whose edits begin alike share what
they have in common: the work is a tree that branches behind each block, so the 15 subsets of four blocks cost 6.3
forwards of SDXL's U-Net and not 15 (counted in `tests/generation/test_replay.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.hooks import RemovableHandle

from riebench.backbones.table import BLOCKS
from riebench.core.batches import fixed_batches
from riebench.generation.lens import Lens, Site

_WHOLE = ""  # the U-Net itself, among the names of its units


@dataclass(frozen=True)
class FirstStep:
    """One row of a U-Net's first call, without any edit. Tensors keep a batch dimension of 1."""

    arguments: tuple[tuple, dict]
    """What the U-Net was called with: positional, by name."""
    outputs: Mapping[str, Any]
    """Unit (see `find_units`) -> its output, in the order in which they ran, up to the last block; then the U-Net's."""


@dataclass(frozen=True)
class Edited:
    """A row to compute: a recorded first step, and what is added to each site, `[C, h, w]`. Rows share their beginnings
    where the recorded steps and the added tensors are the same objects."""

    recorded: FirstStep
    additions: Mapping[Site, Tensor]

    def inside(self, block: str) -> dict[Site, Tensor]:
        """The additions to sites within a block, and not to its update."""
        return {site: value for site, value in self.additions.items() if site.block == block and site.layer is not None}


def find_units(unet: nn.Module) -> dict[str, nn.Module]:
    """Name -> module of what is recorded and replayed as a whole. The parts of the U-Net that hold a block under test
    are taken apart, so that the block is a unit; the others are units themselves."""
    parts = ["conv_in", *(f"down_blocks.{i}" for i in range(len(unet.down_blocks))), "mid_block"]
    parts += [f"up_blocks.{i}" for i in range(len(unet.up_blocks))]
    units: dict[str, nn.Module] = {}
    for part in parts:
        module = unet.get_submodule(part)
        if any(path.startswith(f"{part}.") for path in BLOCKS.values()):
            lists = {name: child for name, child in module.named_children() if isinstance(child, nn.ModuleList)}
            units |= {f"{part}.{name}.{i}": unit for name, child in lists.items() for i, unit in enumerate(child)}
        else:
            units[part] = module
    return units


class Recorder:
    """While active, records the first call of a U-Net."""

    def __init__(self, unet: nn.Module) -> None:
        self.unet = unet
        self._arguments: tuple[tuple, dict] = ((), {})
        self._outputs: dict[str, Any] = {}
        self._hooks = ExitStack()

    def __enter__(self) -> Recorder:
        for name, module in find_units(self.unet).items():
            self._hooks.enter_context(_keep(self._outputs, name, module))
        self._hooks.enter_context(self.unet.register_forward_hook(self._on_call, with_kwargs=True))
        return self

    def __exit__(self, *exc) -> None:
        self._hooks.close()

    def _on_call(self, _unet, args: tuple, kwargs: dict, output: tuple) -> None:
        names = list(self._outputs)
        last = max(i for i, name in enumerate(names) if name in BLOCKS.values())
        for name in names[last + 1 :]:
            del self._outputs[name]
        self._arguments, self._outputs[_WHOLE] = (args, kwargs), output
        self._hooks.close()

    def row(self, index: int) -> FirstStep:
        """What was recorded of one row of the batch."""
        size = len(self._outputs[_WHOLE][0])

        def take(value):
            return (
                value[index : index + 1] if isinstance(value, Tensor) and value.ndim and len(value) == size else value
            )

        return FirstStep(_map(take, self._arguments), _map(take, self._outputs))


@dataclass(frozen=True)
class _Node:
    """A place in the tree: a recorded row, and the outputs that its edits have changed so far."""

    recorded: FirstStep
    edits: tuple = ()
    """(Site, id of the added tensor) of the edits so far: what tells nodes of a row apart."""
    changed: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> tuple:
        return id(self.recorded), *self.edits

    def output(self, name: str) -> Any:
        return self.changed[name] if name in self.changed else self.recorded.outputs[name]

    def edited(self, additions: Mapping[Site, Tensor], outputs: Mapping[str, Any] | None = None) -> _Node:
        edits = (*self.edits, *((site, id(value)) for site, value in additions.items()))
        return _Node(self.recorded, edits, {**self.changed, **(outputs or {})})


class Replay:
    """Computes first steps of edited rows on one U-Net, and counts what that costs."""

    def __init__(self, unet: nn.Module) -> None:
        self._units = find_units(unet) | {_WHOLE: unet}
        self.shares: dict[str, float] = {}
        """Unit -> its share of a forward's floating-point operations; of the U-Net itself, what is left to the rest."""
        self.forwards = 0.0
        """Rows computed so far, each weighted with the share of a whole forward's multiplications that it took."""

    @torch.no_grad()
    def predict(self, rows: Sequence[Edited], batch_size: int) -> list[Tensor]:
        """The U-Net's output `[1, 4, h, w]` at the first step for each row, equal to that of a whole forward with the
        same additions: every stage runs in batches of `batch_size` rows, padded, as whole forwards do."""
        if not rows:
            return []
        if not self.shares:
            self.count(rows[0].recorded)
        order = list(rows[0].recorded.outputs)
        nodes = [_Node(row.recorded) for row in rows]
        start = 0
        for block, path in sorted(BLOCKS.items(), key=lambda item: order.index(item[1])):
            stop = order.index(path) + 1
            inside = [row.inside(block) for row in rows]
            nodes = self._advance(nodes, inside, order[:start], order[start:stop], batch_size)
            nodes = [_behind(node, block, row.additions) for node, row in zip(nodes, rows, strict=True)]
            start = stop
        nodes = self._advance(nodes, [{}] * len(rows), order[:start], [_WHOLE], batch_size)
        return [node.output(_WHOLE)[0] for node in nodes]

    @torch.no_grad()
    def count(self, recorded: FirstStep) -> None:
        """Finds the shares, by a forward of a recorded row. Modules called in other threads would be counted in."""
        args, kwargs = recorded.arguments
        with FlopCounterMode(display=False) as counter:
            self._units[_WHOLE](*args, **kwargs)
        root, total = type(self._units[_WHOLE]).__name__, counter.get_total_flops()
        found = {name: sum(ops.values()) / total for name, ops in counter.get_flop_counts().items()}
        shares = {name: found[f"{root}.{name}"] for name in recorded.outputs if name != _WHOLE}
        self.shares = shares | {_WHOLE: 1 - sum(shares.values())}

    def _advance(
        self,
        nodes: Sequence[_Node],
        inside: Sequence[Mapping[Site, Tensor]],
        replayed: Sequence[str],
        computed: Sequence[str],
        batch_size: int,
    ) -> list[_Node]:
        """The nodes behind the units `computed`, which come right after those `replayed`. Each distinct node is
        computed once; what is not edited keeps its recording."""
        entered = [node.edited(additions) for node, additions in zip(nodes, inside, strict=True)]
        distinct = {node.key: (node, added) for node, added in zip(entered, inside, strict=True) if node.edits}
        done: dict[tuple, _Node] = {}
        for batch, count in fixed_batches(list(distinct.values()), batch_size):
            outputs = self._run(batch, replayed, computed)
            for i, (node, _) in enumerate(batch[:count]):
                done[node.key] = node.edited({}, _map(lambda value, i=i: value[i : i + 1], outputs))
        self.forwards += len(distinct) * sum(self.shares[name] for name in computed)
        return [done.get(node.key, node) for node in entered]

    def _run(
        self, batch: Sequence[tuple[_Node, Mapping[Site, Tensor]]], replayed: Sequence[str], computed: Sequence[str]
    ) -> dict[str, Any]:
        """The outputs of the units `computed` for a batch of nodes."""
        unet, outputs = self._units[_WHOLE], {}
        nodes = [node for node, _ in batch]
        args, kwargs = _map(_join, *(node.recorded.arguments for node in nodes))
        with ExitStack() as stack:
            stack.enter_context(Lens(unet, (), _stacked([additions for _, additions in batch])))
            for name in replayed:
                value = _map(_join, *(node.output(name) for node in nodes))
                stack.enter_context(calling(self._units[name], lambda *_args, _value=value, **_kwargs: _value))
            for name in computed:
                stack.enter_context(_keep(outputs, name, self._units[name]))
            if computed[-1] != _WHOLE:
                stack.enter_context(self._units[computed[-1]].register_forward_hook(_stop))
            with suppress(_Reached):
                unet(*args, **kwargs)
        return outputs


def _behind(node: _Node, block: str, additions: Mapping[Site, Tensor]) -> _Node:
    """The node behind a block, with what is added to the block's update."""
    site = Site(block)
    if site not in additions:
        return node
    hidden, *rest = node.output(BLOCKS[block])
    edited = hidden + additions[site].to(hidden)
    return node.edited({site: additions[site]}, {BLOCKS[block]: (edited, *rest)})


class _Reached(Exception):
    """The last unit that is wanted has run."""


def _stop(*_args) -> None:
    raise _Reached


def _keep(outputs: dict[str, Any], name: str, module: nn.Module) -> RemovableHandle:
    """A hook that keeps the module's output in `outputs`."""

    def hook(_module, _args, output) -> None:
        outputs[name] = output

    return module.register_forward_hook(hook)


@contextmanager
def calling(module: nn.Module, forward: Callable) -> Iterator[None]:
    """The module computes with another function in the place of its own."""
    own = vars(module).get("forward")
    module.forward = forward
    try:
        yield
    finally:
        del module.forward
        if own is not None:
            module.forward = own


@contextmanager
def first_output(unet: nn.Module, output_bchw: Tensor) -> Iterator[None]:
    """The U-Net's first call returns `output_bchw`, and later ones what they compute."""
    with ExitStack() as stack:

        def given(*_args, **_kwargs) -> tuple[Tensor]:
            stack.close()
            return (output_bchw,)

        stack.enter_context(calling(unet, given))
        yield


def _stacked(additions: Sequence[Mapping[Site, Tensor]]) -> dict[Site, Tensor]:
    """Site -> `[rows, 1, C, h, w]`, zero for a row that adds nothing there."""
    first = {site: value for row in additions for site, value in row.items()}
    return {
        site: torch.stack([row.get(site, torch.zeros_like(value)) for row in additions])[:, None]
        for site, value in first.items()
    }


def _join(*values: Any) -> Any:
    """One batch of the rows' values; what has no rows is the same for all."""
    return torch.cat(values) if isinstance(values[0], Tensor) and values[0].ndim else values[0]


def _map(function: Callable, *trees: Any) -> Any:
    """`function` of the leaves of equal nestings of tuples and dictionaries."""
    first = trees[0]
    if isinstance(first, tuple):
        return tuple(_map(function, *parts) for parts in zip(*trees, strict=True))
    if isinstance(first, Mapping):
        return {key: _map(function, *(tree[key] for tree in trees)) for key in first}
    return function(*trees)
