"""Replay: the first step of an edited generation, computed from where the edit begins.

At the first step a generation and its edited copies have the same latents and the same prompt, so every module before
the earliest edit returns what it returned for the unedited image. `Recorder` keeps those outputs; `Replay.predict` puts
them in the modules' places and lets the denoiser's own `forward` compute the rest. Rows whose edits begin alike share
what they have in common: the work is a tree that branches behind each block, so the 15 subsets of four blocks cost 6.3
forwards of SDXL and not 15 (counted in `tests/generation/test_replay.py`).
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

from riebench.backbones.blocks import Blocks, to_cells
from riebench.backbones.family import Site
from riebench.core.batches import fixed_batches
from riebench.generation.lens import Lens, Part, RowAdditions, add_at, in_order

_WHOLE = ""  # the denoiser itself, among the names of its units


@dataclass(frozen=True)
class FirstStep:
    """One row of a denoiser's first call, without any edit. Tensors keep a batch dimension of 1."""

    arguments: tuple[tuple, dict]
    """What the denoiser was called with: positional, by name."""
    outputs: Mapping[str, Any]
    """Unit (`Family.units`) -> its output, in the order in which they ran, up to the last block; then the
    denoiser's."""


@dataclass(frozen=True, eq=False)
class FirstAddition:
    """Says what is added at one site at the first step."""

    cells: Tensor
    """int64 `[n]`."""
    values: Tensor
    """`[n, C]`, or `[n, m]` where m channels are named."""
    channels: Tensor | None = None
    """int64 `[m]`; None for all."""
    replaces: bool = False
    """Whether the values stand in the place of what is there."""


@dataclass(frozen=True)
class Edited:
    """A row to compute: a recorded first step, and what is added to each site. Rows share their beginnings where the
    recorded steps and the additions are the same objects."""

    recorded: FirstStep
    additions: Mapping[Site, FirstAddition]

    def inside(self, block: str) -> dict[Site, FirstAddition]:
        """Returns the additions to sites within a block, and not to what it puts out."""
        return {site: added for site, added in self.additions.items() if site.block == block and site.inside}

    def behind(self, block: str) -> dict[Site, FirstAddition]:
        """Returns the additions to what a block puts out: to its update, or its stream; in the order in which they are
        added."""
        sites = in_order(site for site in self.additions if site.block == block and not site.inside)
        return {site: self.additions[site] for site in sites}


class Recorder:
    """While active, records the first call of a denoiser.

    names: the blocks that are edited later; what runs behind the last of them is not kept.
    """

    def __init__(self, blocks: Blocks, names: Sequence[str]) -> None:
        self.denoiser = blocks.denoiser
        self._paths = [blocks.family.place(name).path for name in names]
        self._units = blocks.family.units(blocks.denoiser, self._paths)
        self._arguments: tuple[tuple, dict] = ((), {})
        self._outputs: dict[str, Any] = {}
        self._hooks = ExitStack()

    def __enter__(self) -> Recorder:
        for name, module in self._units.items():
            self._hooks.enter_context(_keep(self._outputs, name, module))
        self._hooks.enter_context(self.denoiser.register_forward_hook(self._on_call, with_kwargs=True))
        return self

    def __exit__(self, *exc) -> None:
        self._hooks.close()

    def _on_call(self, _denoiser, args: tuple, kwargs: dict, output: tuple) -> None:
        names = list(self._outputs)
        last = max(i for i, name in enumerate(names) if name in self._paths)
        for name in names[last + 1 :]:
            del self._outputs[name]
        self._arguments, self._outputs[_WHOLE] = (args, kwargs), output
        self._hooks.close()

    def row(self, index: int) -> FirstStep:
        """Returns what was recorded of one row of the batch."""
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
    """(Site, id of the addition) of the edits so far: what tells nodes of a row apart."""
    changed: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> tuple:
        return id(self.recorded), *self.edits

    def output(self, name: str) -> Any:
        return self.changed[name] if name in self.changed else self.recorded.outputs[name]

    def edited(self, additions: Mapping[Site, FirstAddition], outputs: Mapping[str, Any] | None = None) -> _Node:
        edits = (*self.edits, *((site, id(added)) for site, added in additions.items()))
        return _Node(self.recorded, edits, {**self.changed, **(outputs or {})})


class Replay:
    """Computes first steps of rows on one denoiser that are edited in some blocks, and counts what that costs."""

    def __init__(self, blocks: Blocks, names: Sequence[str]) -> None:
        self._blocks, self._paths = blocks, {name: blocks.family.place(name).path for name in names}
        self._units = blocks.family.units(blocks.denoiser, self._paths.values()) | {_WHOLE: blocks.denoiser}
        self.shares: dict[str, float] = {}
        """Unit -> its share of a forward's floating-point operations; of the denoiser itself, what is left to the
        rest."""
        self.forwards = 0.0
        """Rows computed so far, each weighted with the share of a whole forward's multiplications that it took."""

    @torch.no_grad()
    def predict(self, rows: Sequence[Edited], batch_size: int) -> list[Tensor]:
        """Returns the denoiser's output, with a batch dimension of 1, at the first step for each row, equal to that
        of a whole forward with the same additions: every stage runs in batches of `batch_size` rows, padded, as
        whole forwards do."""
        if not rows:
            return []
        if not self.shares:
            self.count(rows[0].recorded)
        order = list(rows[0].recorded.outputs)
        nodes = [_Node(row.recorded) for row in rows]
        start = 0
        for block, path in sorted(self._paths.items(), key=lambda item: order.index(item[1])):
            stop = order.index(path) + 1
            inside = [row.inside(block) for row in rows]
            nodes = self._advance(nodes, inside, order[:start], order[start:stop], batch_size)
            nodes = [self._behind(node, block, row.behind(block)) for node, row in zip(nodes, rows, strict=True)]
            start = stop
        nodes = self._advance(nodes, [{}] * len(rows), order[:start], [_WHOLE], batch_size)
        return [node.output(_WHOLE)[0] for node in nodes]

    @torch.no_grad()
    def count(self, recorded: FirstStep) -> None:
        """Finds the `shares`, by a forward of a recorded row. Modules called in other threads would be counted in."""
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
        inside: Sequence[Mapping[Site, FirstAddition]],
        replayed: Sequence[str],
        computed: Sequence[str],
        batch_size: int,
    ) -> list[_Node]:
        """Returns the nodes behind the units `computed`, which come right after those `replayed`. Each distinct node is
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
        self,
        batch: Sequence[tuple[_Node, Mapping[Site, FirstAddition]]],
        replayed: Sequence[str],
        computed: Sequence[str],
    ) -> dict[str, Any]:
        """Returns the outputs of the units `computed` for a batch of nodes."""
        outputs: dict[str, Any] = {}
        nodes = [node for node, _ in batch]
        args, kwargs = _map(_join, *(node.recorded.arguments for node in nodes))
        with ExitStack() as stack:
            stack.enter_context(Lens(self._blocks, (), _stacked([additions for _, additions in batch])))
            for name in replayed:
                value = _map(_join, *(node.output(name) for node in nodes))
                stack.enter_context(calling(self._units[name], lambda *_args, _value=value, **_kwargs: _value))
            for name in computed:
                stack.enter_context(_keep(outputs, name, self._units[name]))
            if computed[-1] != _WHOLE:
                stack.enter_context(self._units[computed[-1]].register_forward_hook(_stop))
            with suppress(_Reached):
                self._units[_WHOLE](*args, **kwargs)
        return outputs

    def _behind(self, node: _Node, block: str, additions: Mapping[Site, FirstAddition]) -> _Node:
        """Returns the node behind a block, with what is added to what the block puts out."""
        if not additions:
            return node
        output = node.output(self._paths[block])
        stream = self._blocks.stream_of(block, output).clone()
        view = to_cells(stream, self._blocks.family.place(block))
        for added in additions.values():
            add_at(view[0], added.cells, added.channels, added.values)
        return node.edited(additions, {self._paths[block]: self._blocks.with_stream(block, output, stream)})


class _Reached(Exception):
    """The last unit that is wanted has run."""


def _stop(*_args) -> None:
    raise _Reached


def _keep(outputs: dict[str, Any], name: str, module: nn.Module) -> RemovableHandle:
    """Puts on a hook that keeps the module's output in `outputs`."""

    def hook(_module, _args, output) -> None:
        outputs[name] = output

    return module.register_forward_hook(hook)


@contextmanager
def calling(module: nn.Module, forward: Callable) -> Iterator[None]:
    """Has a module compute with another function in the place of its own."""
    own = vars(module).get("forward")
    module.forward = forward
    try:
        yield
    finally:
        del module.forward
        if own is not None:
            module.forward = own


@contextmanager
def first_output(denoiser: nn.Module, output: Tensor) -> Iterator[None]:
    """Has the denoiser's first call return `output`, and later ones what they compute."""
    with ExitStack() as stack:

        def given(*_args, **_kwargs) -> tuple[Tensor]:
            stack.close()
            return (output,)

        stack.enter_context(calling(denoiser, given))
        yield


def _stacked(additions: Sequence[Mapping[Site, FirstAddition]]) -> dict[Site, RowAdditions]:
    """Returns what is added at each site of a batch; its step is the first."""
    found: dict[Site, list[Part]] = {}
    for row, by_site in enumerate(additions):
        for site, added in by_site.items():
            rows = torch.full_like(added.cells, row)
            found.setdefault(site, []).append(
                Part(rows, added.cells, added.values[None], added.channels, replaces=added.replaces)
            )
    return {site: RowAdditions(len(additions), parts) for site, parts in found.items()}


def _join(*values: Any) -> Any:
    """Returns one batch of the rows' values; what has no rows is the same for all."""
    return torch.cat(values) if isinstance(values[0], Tensor) and values[0].ndim else values[0]


def _map(function: Callable, *trees: Any) -> Any:
    """Returns `function` of the leaves of equal nestings of tuples and dictionaries."""
    first = trees[0]
    if isinstance(first, tuple):
        return tuple(_map(function, *parts) for parts in zip(*trees, strict=True))
    if isinstance(first, Mapping):
        return {key: _map(function, *(tree[key] for tree in trees)) for key in first}
    return function(*trees)
