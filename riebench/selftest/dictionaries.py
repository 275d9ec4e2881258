"""Step 2: the dictionaries of the backbone, on updates in its own dtype and in float32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from riebench.backbones.family import Site
from riebench.backbones.table import BACKBONES, Backbone
from riebench.core.errors import UserError
from riebench.generation.sampler import Sampler
from riebench.selftest.bench import Bench
from riebench.selftest.step import Check, Found, NotPossible, one_line
from sae_models import index
from sae_models.evaluation import Evaluation, Tally

LEAST_EXPLAINED, DTYPES_AGREE, AS_REGISTERED = 0.5, 0.02, 0.1


def look(bench: Bench) -> Found:
    """Returns explained variance and active latents of each block's dictionary."""
    if bench.random:
        raise NotPossible("with random weights dictionaries say nothing")
    engine = bench.engine
    entries = {}
    for block in bench.backbone.blocks:
        try:
            entry, root = engine.setup.dictionary_of(bench.backbone, block)
            index.fingerprint(entry, root=root)
        except UserError as error:
            raise NotPossible(one_line(error)) from error
        entries[block] = entry
    sampler = Sampler(_trained_on(bench), engine.sampler.pipeline, bench.amounts.batch)
    own = str(sampler.denoiser.dtype).removeprefix("torch.")
    found = {own: _evaluate(bench, sampler)}
    if own != "float32":
        with _in_float32(sampler):
            found["float32"] = _evaluate(bench, Sampler(sampler.backbone, sampler.pipeline, bench.amounts.batch))
    rows, wrong = {}, []
    for block, entry in entries.items():
        explained = {dtype: of[block].explained_variance_pooled for dtype, of in found.items()}
        active = {dtype: of[block].l0 for dtype, of in found.items()}
        registered = (entry.evaluation or {}).get("explained_variance_pooled")
        words = {"name": entry.name, "k": entry.k, "features": entry.num_features, "registered": registered}
        rows[block] = words | {"explained variance": explained, "active": active, "rows": found[own][block].num_rows}
        least = LEAST_EXPLAINED if registered is None else registered - AS_REGISTERED
        if min(explained.values()) < least or max(explained.values()) - min(explained.values()) > DTYPES_AGREE:
            wrong.append(f"{block} explains {_words(explained)}")
        if not 0 < max(active.values()) <= (entry.k or entry.num_features) + 1e-6:
            wrong.append(f"{block} has {_words(active)} active of k={entry.k}")
    of_own = [row["explained variance"][own] for row in rows.values()]
    active = [row["active"][own] for row in rows.values()]
    figure = f"explained variance {min(of_own):.3f} to {max(of_own):.3f}, {min(active):.1f} to {max(active):.1f} active"
    return Found("; ".join(wrong) or figure, not wrong, {"on": sampler.backbone.name, "blocks": rows})


def _words(figures: dict[str, float]) -> str:
    return ", ".join(f"{value:.3f} in {dtype}" for dtype, value in figures.items())


def _trained_on(bench: Bench) -> Backbone:
    """Returns the backbone that the dictionaries were trained on where it has the same weights, else this one."""
    own = bench.backbone
    if own.dictionaries not in BACKBONES.names():
        return own
    other = BACKBONES.get(own.dictionaries)
    return other if (other.folder, other.weights) == (own.folder, own.weights) else own


def _evaluate(bench: Bench, sampler: Sampler) -> dict[str, Evaluation]:
    """Returns block -> how its dictionary codes the updates of some prompts."""
    generation = bench.engine.generation
    tallies = {Site(block, generation.site): Tally(generation.dictionary(block)) for block in bench.backbone.blocks}
    requests = bench.requests(bench.amounts.prompts)
    for start in range(0, len(requests), sampler.batch_size):
        some = requests[start : start + sampler.batch_size]
        for sample in sampler.generate(some, list(tallies), decode=False, branches=("cond",), keep_here=True):
            for site, trace in sample.trace.items():
                tallies[site].add(trace.flatten(0, 1))
    return {site.block: tally.evaluation() for site, tally in tallies.items()}


@contextmanager
def _in_float32(sampler: Sampler) -> Iterator[None]:
    """Has the denoiser and the text encoders compute in float32 in here: their weights are the same, and come back
    without loss."""
    family = sampler.backbone.family
    parts: list[Any] = [getattr(sampler.pipeline, name) for name in (family.denoiser, *family.text_encoders)]
    dtypes = [part.dtype for part in parts]
    try:
        for part in parts:
            torch.nn.Module.to(part, torch.float32)  # not diffusers' own, which warns of it
        yield
    finally:
        for part, dtype in zip(parts, dtypes, strict=True):
            torch.nn.Module.to(part, dtype)


CHECK = Check(
    2,
    "dictionaries",
    f"explained variance above {LEAST_EXPLAINED}, or within {AS_REGISTERED} of what is registered, and within"
    f" {DTYPES_AGREE} of float32's; at most k latents active",
    look,
)
