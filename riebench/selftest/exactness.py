"""Step 6: nothing added changes nothing, and what is made faster is what is made anew, also in smaller batches."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr

import torch
from torch import nn

from riebench.analysis.coalitions import needed_subsets
from riebench.backbones.family import Site
from riebench.generation.interventions import Addition, Intervention
from riebench.generation.sampler import Request, Sample, Sampler
from riebench.selftest.bench import SEED, Bench
from riebench.selftest.step import Check, Found


def check(bench: Bench) -> Found:
    """Returns whether an addition of zeros gives the original image, and replayed images those made anew, for every
    subset of the blocks, at the batch size and after it was halved."""
    size = bench.amounts.batch
    whole = _compare(bench, Sampler(bench.backbone, bench.sampler.pipeline, size))
    halved = Sampler(bench.backbone, bench.sampler.pipeline, size)
    with _no_room_for(halved.denoiser, halved.batch_size * len(bench.backbone.branches)):
        smaller = _compare(bench, halved)
    wrong = (
        [f"the batch size is {halved.batch_size} after a halving of {size}"] if halved.batch_size != size // 2 else []
    )
    for at, found in ((size, whole), (halved.batch_size, smaller)):
        wrong += [] if found["zero exact"] else [f"zero strength changes the image in batches of {at}"]
        wrong += [f"{blocks or 'no block'} differs in batches of {at}" for blocks in found["differ"]]
        wrong += [] if found["changed"] else [f"no addition changes the image in batches of {at}"]
    figure = f"zero strength and {whole['subsets']} subsets equal, in batches of {size} and of {halved.batch_size}"
    return Found("; ".join(wrong) or figure, not wrong, {f"in batches of {size}": whole, "after a halving": smaller})


def _compare(bench: Bench, sampler: Sampler) -> dict:
    """Returns what is equal of the images that additions to each subset of the blocks make."""
    sites = [Site(block) for block in bench.backbone.blocks]
    before, after = (Request(prompt, SEED) for prompt in bench.prompts[:2])
    original, other = sampler.generate([before, after], sites, record=True, branches=("cond",), keep_here=True)
    whole = Intervention({site: other.trace[site] - original.trace[site] for site in sites})
    subsets = needed_subsets(bench.backbone.blocks)
    changes = [_zeros(original), *(whole.restricted(subset) for subset in subsets)]
    requests = [Request(before.prompt, before.seed, change) for change in changes]
    anew = [sample.image for sample in sampler.generate(requests, keep_here=True)]
    replayed = list(sampler.regenerate(requests, [original] * len(requests)))
    equal = [torch.equal(one, two) for one, two in zip(anew, replayed, strict=True)]
    zero = all(torch.equal(images[0], original.image) for images in (anew, replayed))
    return {
        "zero exact": zero,
        "subsets": len(subsets),
        "differ": ["+".join(subset) for subset, same in zip(subsets, equal[1:], strict=True) if not same],
        "changed": not torch.equal(anew[-1], original.image),
    }


def _zeros(original: Sample) -> Intervention:
    """Returns an intervention that adds zeros at all cells of all sites that were traced."""
    return Intervention(
        {
            site: Addition(torch.arange(trace.shape[1], device=trace.device), torch.zeros_like(trace))
            for site, trace in original.trace.items()
        }
    )


@contextmanager
def _no_room_for(denoiser: nn.Module, rows: int) -> Iterator[None]:
    """Lets memory run out in here where the denoiser is called with so many rows; what is said of it is not shown."""

    def run_out(_module: nn.Module, args: tuple) -> None:
        if len(args[0]) >= rows:
            raise torch.OutOfMemoryError("forced by the self-test")

    handle = denoiser.register_forward_pre_hook(run_out)
    try:
        with redirect_stderr(io.StringIO()):
            yield
    finally:
        handle.remove()


CHECK = Check(
    6,
    "exactness",
    "zero strength gives the original image to the bit, and replayed images equal those made anew",
    check,
)
