"""Step 5: what one forward of the denoiser takes: rows, layout in memory, hooks, compilation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import nn

from riebench.backbones.family import Site
from riebench.generation.compiling import compile_parts
from riebench.generation.lens import Lens
from riebench.generation.sampler import Sampler
from riebench.selftest.bench import Bench
from riebench.selftest.measure import seconds_of, sizes_that_fit
from riebench.selftest.step import Check, Found, NotPossible, one_line

MOST_OF_HOOKS = 0.05  # of a forward, on a GPU


@torch.no_grad()
def time_forwards(bench: Bench) -> Found:
    """Returns milliseconds of a forward for each number of rows, and of the largest in another layout, with hooks and
    compiled."""
    sampler, device, repeats = bench.sampler, bench.device, bench.amounts.repeats
    plain, too_large = sizes_that_fit(
        bench.amounts.rows, lambda rows: seconds_of(_forward(bench, rows), device, repeats) * 1e3
    )
    largest, otherwise = max(plain), {}
    forward = _forward(bench, largest)
    sites = [Site(block) for block in bench.backbone.blocks]
    with Lens(sampler.blocks, sites) as lens:
        otherwise["with hooks"] = seconds_of(lambda: (forward(), lens.take()), device, repeats) * 1e3
    with _laid_out(sampler.denoiser, torch.contiguous_format):
        otherwise["channels first"] = seconds_of(forward, device, repeats) * 1e3
    detail: dict[str, Any] = {"ms by rows": plain, f"ms of {largest} rows": otherwise}
    missing, finite = "", bool(torch.isfinite(forward()[0]).all())
    try:
        with _compiled(bench):
            otherwise["compiled"] = seconds_of(forward, device, repeats) * 1e3
    except NotPossible as reason:
        missing = f"compiled: {reason}"
    hooks = otherwise["with hooks"] / plain[largest] - 1
    slow = device.type == "cuda" and hooks > MOST_OF_HOOKS
    shown = [f"{rows} rows {ms:.0f} ms" for rows, ms in plain.items()]
    shown += [f"{name} {ms:.0f} ms" for name, ms in otherwise.items()]
    shown += [too_large] if too_large else []
    shown += [] if finite else ["what comes out is not finite"]
    detail |= {"hooks, share of a forward": hooks, "compiled": missing or "as above"}
    return Found(", ".join(shown), finite and not slow, detail)


def _forward(bench: Bench, rows: int) -> Callable[[], Any]:
    """Returns a function that calls the denoiser once more as the pipeline did for so many pictures."""
    sampler = Sampler(bench.backbone, bench.sampler.pipeline, rows)
    seen: list[tuple[tuple, dict]] = []

    def read(_module: nn.Module, args: tuple, kwargs: dict) -> None:
        seen.append((args, kwargs))
        raise _Enough

    handle = sampler.denoiser.register_forward_pre_hook(read, with_kwargs=True)
    try:
        with suppress(_Enough):
            sampler.generate(bench.requests(rows), decode=False)
    finally:
        handle.remove()
    ((args, kwargs),) = seen
    return lambda: sampler.denoiser(*args, **kwargs)


class _Enough(Exception):
    """An end of a generation of which nothing more is wanted."""


@contextmanager
def _laid_out(denoiser: nn.Module, memory_format: torch.memory_format) -> Iterator[None]:
    """Lays the weights out otherwise in here, and channels last, as they are loaded, again afterwards."""
    denoiser.to(memory_format=memory_format)
    try:
        yield
    finally:
        denoiser.to(memory_format=torch.channels_last)


@contextmanager
def _compiled(bench: Bench) -> Iterator[None]:
    """Compiles what `riebench run --compile` does in here. Raises `NotPossible` on a CPU and without a compiler."""
    if bench.device.type != "cuda":
        raise NotPossible("it is tried on a GPU alone")
    sampler = bench.sampler
    modules = sampler.backbone.family.compilable(sampler.pipeline)
    compile_parts(sampler.backbone.family, sampler.pipeline)
    try:
        yield
    except Exception as error:
        if any(word in str(error) for word in ("riton", "ompiler")):
            raise NotPossible(one_line(error)) from error
        raise
    finally:
        for module in modules:
            del module.forward  # its class's own again


CHECK = Check(
    5,
    "denoiser",
    f"finite; on a GPU hooks take less than {MOST_OF_HOOKS:.0%} of a forward, and a compiled one less than another",
    time_forwards,
)
