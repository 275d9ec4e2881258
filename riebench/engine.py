"""The stages of a run: references, interventions, scores. Work goes through in chunks, so memory stays flat."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from riebench.backbones import BACKBONES, BLOCK_NAMES, Backbone, blocks_text
from riebench.edits import Edit
from riebench.errors import UserError
from riebench.grounders import GROUNDERS
from riebench.grounding import dilate, ground, mask_to_grid
from riebench.interventions import Intervention
from riebench.lens import find_sites
from riebench.methods import Case, Method
from riebench.metrics import METRICS, ScoreBatch, score_batch, scorers
from riebench.sampling import BATCH_SIZE, Request, Sampler, choose_device, load_sampler
from sae_models import index

CASES_PER_CHUNK = 16
SIDES = ("original", "edited")
OUTSIDE_PX, OUTSIDE_REFERENCE_PX = 12, 512  # how far the region is dilated before "outside" begins (protocol §7)


@dataclass(frozen=True)
class Variant:
    """One setting of a run: a method on a subset of the blocks. Empty `blocks` stands for no block at all."""

    method: Method
    blocks: tuple[str, ...]


@dataclass(frozen=True)
class Reference:
    """What all settings of a case share."""

    case: Case
    original: Tensor
    """The original image `[3, h, w]` in [0, 1]."""
    edited: Tensor
    outside: Tensor
    """bool `[h, w]`: pixels outside both images' regions, dilated."""
    failure: str
    """Why the case cannot be run; empty where it can."""


@dataclass(frozen=True)
class Planned:
    """A result to be generated, or the reason why it cannot be."""

    reference: Reference
    variant: Variant
    intervention: Intervention
    failure: str

    @property
    def request(self) -> Request:
        edit, seed = self.reference.case.edit, self.reference.case.seed
        prompt = edit.edited_prompt if self.intervention.prompt == "edited" else edit.original_prompt
        return Request(prompt, seed, self.intervention)


@dataclass(frozen=True)
class Result:
    """One row of the scores, and its image."""

    row: dict[str, object]
    image: Tensor | None


class Engine:
    """A loaded backbone with its grounder, dictionaries and metrics."""

    def __init__(self, sampler: Sampler, *, mask_rule: str = "touched") -> None:
        self.sampler, self.backbone, self.mask_rule = sampler, sampler.backbone, mask_rule
        self.grounder = GROUNDERS.get(self.backbone.grounder)(sampler.device)
        self.metrics = scorers(METRICS.names(), self.backbone.judges, sampler.device)
        self.sae = cache(self._open_sae)

    def _open_sae(self, block: str):
        return index.open(index.find(self.backbone.dictionaries or self.backbone.name, block), device="cpu")

    def references(self, cases: Sequence[tuple[Edit, int]], methods: Sequence[Method] = ()) -> list[Reference]:
        """Original and edited image, updates and what else the methods trace, and regions of every (edit, seed)."""
        kinds = dict.fromkeys(["update", *(method.sites for method in methods if method.sites)])
        sites = [site for kind in kinds for site in find_sites(self.sampler.unet, BLOCK_NAMES, kind)]
        requests = [
            Request(prompt, seed) for edit, seed in cases for prompt in (edit.original_prompt, edit.edited_prompt)
        ]
        samples = self.sampler.generate(requests, sites)
        originals, edited = samples[::2], samples[1::2]
        masks_o, masks_e = (
            ground(self.grounder, torch.stack([sample.image for sample in side]).to(self.sampler.device), phrases).cpu()
            for side, phrases in (
                (originals, [edit.original_region for edit, _ in cases]),
                (edited, [edit.edited_region for edit, _ in cases]),
            )
        )
        return [
            self._reference(*case, originals[i], edited[i], *_shared_region(case[0], masks_o[i], masks_e[i]))
            for i, case in enumerate(cases)
        ]

    def _reference(self, edit: Edit, seed: int, original, edited, mask_o: Tensor, mask_e: Tensor) -> Reference:
        grids = {site.block: tuple(value.shape[-2:]) for site, value in original.trace.items()}
        cells_o, cells_e = (
            {block: mask_to_grid(mask[None], grid, self.mask_rule)[0] for block, grid in grids.items()}
            for mask in (mask_o, mask_e)
        )
        empty = [
            name for name, cells in (("original", cells_o), ("edited", cells_e)) if not next(iter(cells.values())).any()
        ]
        failure = f"no region found in the {' and '.join(empty)} image" if empty else ""
        if not all(torch.isfinite(sample.image).all() for sample in (original, edited)):
            failure = "a reference image holds NaN"
        case = Case(edit, seed, original.trace, edited.trace, cells_o, cells_e, self.sae)
        pixels = round(OUTSIDE_PX * mask_o.shape[-2] / OUTSIDE_REFERENCE_PX)
        outside = ~dilate((mask_o | mask_e)[None], pixels)[0]
        return Reference(case, original.image, edited.image, outside, failure)

    def results(self, references: Sequence[Reference], variants: Sequence[Variant]) -> Iterator[Result]:
        """Generates and scores every variant of every reference, in batches."""
        planned = [item for reference in references for item in _plan(reference, variants)]
        for start in range(0, len(planned), self.sampler.batch_size):
            yield from self._batch(planned[start : start + self.sampler.batch_size])

    def _batch(self, planned: list[Planned]) -> list[Result]:
        samples = iter(self.sampler.generate([item.request for item in planned if not item.failure]))
        images = [None if item.failure else next(samples).image for item in planned]
        broken = [image is not None and not torch.isfinite(image).all() for image in images]
        images = [None if bad else image for image, bad in zip(images, broken, strict=True)]
        reasons = ["the image holds NaN" if bad else item.failure for item, bad in zip(planned, broken, strict=True)]
        pairs = [(item.reference, image) for item, image in zip(planned, images, strict=True) if image is not None]
        scores = iter(self._score(pairs))
        unscored = dict.fromkeys(METRICS.names(), float("nan"))
        return [
            Result(self._row(item, reason) | (unscored if image is None else next(scores)), image)
            for item, image, reason in zip(planned, images, reasons, strict=True)
        ]

    def _score(self, pairs: list[tuple[Reference, Tensor]]) -> list[dict[str, float]]:
        if not pairs:
            return []
        references = [reference for reference, _ in pairs]
        device = self.sampler.device
        batch = ScoreBatch(
            intervened=torch.stack([image for _, image in pairs]).to(device),
            original=torch.stack([reference.original for reference in references]).to(device),
            edited=torch.stack([reference.edited for reference in references]).to(device),
            edits=[reference.case.edit for reference in references],
            outside=torch.stack([reference.outside for reference in references]).to(device),
        )
        columns = score_batch(self.metrics, batch)
        return [{name: float(values[i]) for name, values in columns.items()} for i in range(len(pairs))]

    def _row(self, item: Planned, reason: str) -> dict[str, object]:
        case, method = item.reference.case, item.variant.method
        first = next(iter(case.original_cells))
        return {
            "edit": case.edit.id,
            "category": case.edit.category,
            "seed": case.seed,
            "backbone": self.backbone.name,
            "steps": self.backbone.steps,
            "mode": "strict",
            "method": method.name,
            "strength": float(method.strength),
            "blocks": blocks_text(item.variant.blocks),
            "features": json.dumps(dict(item.intervention.features), sort_keys=True),
            "num_features": sum(item.intervention.features.values()),
            "injected_norm": item.intervention.norm,
            "cells_original": int(case.original_cells[first].sum()),
            "cells_edited": int(case.edited_cells[first].sum()),
            "status": "failed" if reason else "ok",
            "reason": reason,
        }


def _plan(reference: Reference, variants: Sequence[Variant]) -> Iterator[Planned]:
    """Every variant of a reference. Each method plans once, on all blocks; a variant is that plan restricted."""
    plans: dict[int, tuple[Intervention, str]] = {}
    for variant in variants:
        method = variant.method
        if id(method) not in plans:
            plans[id(method)] = (
                (Intervention(), reference.failure) if reference.failure else _ask(method, reference.case)
            )
        intervention, failure = plans[id(method)]
        yield Planned(reference, variant, intervention.restricted(variant.blocks), failure)


def _ask(method: Method, case: Case) -> tuple[Intervention, str]:
    """A method's plan of a case, of which it sees the sites it asked for; or why it has none."""
    traces = {
        side: {site: value for site, value in getattr(case, side).items() if site.kind == method.sites}
        for side in SIDES
    }
    try:
        return method.plan(dataclasses.replace(case, **traces)), ""
    except UserError as error:
        return Intervention(), f"{method.name}: {error}"


def open_engine(
    backbone: str | Backbone, device: str = "auto", *, batch_size: int = BATCH_SIZE, mask_rule: str = "touched"
) -> Engine:
    """Loads a backbone by name, with all that judges its pictures. Raises `UserError` where something is missing."""
    found = BACKBONES.get(backbone) if isinstance(backbone, str) else backbone
    return Engine(load_sampler(found, choose_device(device), batch_size), mask_rule=mask_rule)


def block_subsets(blocks: Sequence[str] = BLOCK_NAMES) -> list[tuple[str, ...]]:
    """Every non-empty subset of the blocks, small ones first. The empty one is the original image."""
    return [subset for size in range(1, len(blocks) + 1) for subset in itertools.combinations(blocks, size)]


def plan_variants(methods: Sequence[Method], subsets_of: str) -> list[Variant]:
    """Each method on all blocks, and one method on every subset of them."""
    return [
        variant_of(method, subset)
        for method in methods
        for subset in (block_subsets() if method.name == subsets_of and method.sites else [BLOCK_NAMES])
    ]


def variant_of(method: Method, blocks: tuple[str, ...]) -> Variant:
    """A method on some blocks; one that adds nothing has no blocks."""
    return Variant(method, blocks if method.sites else ())


def _shared_region(edit: Edit, mask_o: Tensor, mask_e: Tensor) -> tuple[Tensor, Tensor]:
    """Masks of the original and the edited image: one mask on both where an object comes or goes (protocol §4)."""
    if edit.category == "add_object":
        return mask_e, mask_e
    if edit.category == "delete_object":
        return mask_o, mask_o
    return mask_o, mask_e
