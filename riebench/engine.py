"""The stages of a run: references, interventions, scores. Work goes through in chunks of cases, so memory stays flat."""

from __future__ import annotations

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
from riebench.lens import Site, find_sites
from riebench.methods import Case, Method
from riebench.metrics import METRICS, ScoreBatch, score_batch, scorers
from riebench.sampling import Request, Sampler, choose_device, load_sampler
from sae_models import index

CASES_PER_CHUNK = 16
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
class Result:
    """One row of the scores, and its image."""

    row: dict[str, object]
    image: Tensor | None


class Engine:
    """A loaded backbone with its grounder, dictionaries and metrics."""

    def __init__(self, sampler: Sampler, *, mask_rule: str = "touched") -> None:
        self.sampler, self.backbone, self.mask_rule = sampler, sampler.backbone, mask_rule
        self.grounder = GROUNDERS.get(self.backbone.grounder)(sampler.device)
        self.metrics = scorers(METRICS.names(), "tinyworld", sampler.device)
        self.sae = cache(self._open_sae)

    def _open_sae(self, block: str):
        return index.open(index.find(self.backbone.name, block), device="cpu")

    def references(self, cases: Sequence[tuple[Edit, int]], kinds: Sequence[str] = ("update",)) -> list[Reference]:
        """Original and edited image, traces of the asked kinds, and regions of every (edit, seed)."""
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
        planned = [item for reference in references for item in self._plan(reference, variants)]
        for start in range(0, len(planned), self.sampler.batch_size):
            yield from self._batch(planned[start : start + self.sampler.batch_size])

    def _plan(self, reference: Reference, variants: Sequence[Variant]):
        plans: dict[int, Intervention | str] = {}
        for variant in variants:
            key = id(variant.method)
            if key not in plans:
                plans[key] = reference.failure or self._plan_one(reference.case, variant.method)
            plan = plans[key]
            yield reference, variant, plan if isinstance(plan, str) else plan.restricted(variant.blocks)

    @staticmethod
    def _plan_one(case: Case, method: Method) -> Intervention | str:
        seen = {site: value for site, value in case.original.items() if (site.layer is None) == (method.sites == "update")}
        view = Case(
            case.edit, case.seed, seen, {site: case.edited[site] for site in seen},
            case.original_cells, case.edited_cells, case.sae,
        )  # fmt: skip
        try:
            return method.plan(view)
        except UserError as error:
            return f"{method.name}: {error}"

    def _batch(self, planned) -> list[Result]:
        working = [item for item in planned if not isinstance(item[2], str)]
        requests = [Request(_prompt(reference.case.edit, plan), reference.case.seed, plan) for reference, _, plan in working]
        images = iter([sample.image for sample in self.sampler.generate(requests)])
        results: list[tuple] = []
        for reference, variant, plan in planned:
            image = None if isinstance(plan, str) else next(images)
            reason = plan if isinstance(plan, str) else ""
            if image is not None and not torch.isfinite(image).all():
                image, reason = None, "the image holds NaN"
            results.append((reference, variant, plan, image, reason))
        scores = iter(self._score([(reference, image) for reference, _, _, image, _ in results if image is not None]))
        return [
            Result(
                self._row(reference, variant, plan, reason)
                | (next(scores) if image is not None else dict.fromkeys(METRICS.names(), float("nan"))),
                image,
            )
            for reference, variant, plan, image, reason in results
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

    def _row(self, reference: Reference, variant: Variant, plan: Intervention | str, reason: str) -> dict[str, object]:
        case = reference.case
        first = next(iter(case.original_cells))
        features = {} if isinstance(plan, str) else dict(plan.features)
        return {
            "edit": case.edit.id,
            "category": case.edit.category,
            "seed": case.seed,
            "backbone": self.backbone.name,
            "steps": self.backbone.steps,
            "mode": "strict",
            "method": variant.method.name,
            "strength": float(variant.method.strength),
            "blocks": blocks_text(variant.blocks),
            "features": json.dumps(features, sort_keys=True),
            "num_features": sum(features.values()),
            "injected_norm": 0.0 if isinstance(plan, str) else plan.norm,
            "cells_original": int(case.original_cells[first].sum()),
            "cells_edited": int(case.edited_cells[first].sum()),
            "status": "failed" if reason else "ok",
            "reason": reason,
        }


def open_engine(backbone: str | Backbone, device: str = "auto", *, batch_size: int = 32, mask_rule: str = "touched") -> Engine:
    """Loads a backbone by name, with all that judges its pictures. Raises `UserError` where something is missing."""
    found = BACKBONES.get(backbone) if isinstance(backbone, str) else backbone
    return Engine(load_sampler(found, choose_device(device), batch_size), mask_rule=mask_rule)


def block_subsets(blocks: Sequence[str] = BLOCK_NAMES) -> list[tuple[str, ...]]:
    """Every non-empty subset of the blocks, small ones first. The empty one is the original image."""
    return [subset for size in range(1, len(blocks) + 1) for subset in itertools.combinations(blocks, size)]


def plan_variants(methods: Sequence[Method], subsets_of: str) -> list[Variant]:
    """Each method on all blocks, and one method on every subset of them. Methods that add nothing have no blocks."""
    variants = []
    for method in methods:
        if not method.sites:
            variants.append(Variant(method, ()))
        elif method.name == subsets_of:
            variants += [Variant(method, subset) for subset in block_subsets()]
        else:
            variants.append(Variant(method, BLOCK_NAMES))
    return variants


def _prompt(edit: Edit, plan: Intervention) -> str:
    return edit.edited_prompt if plan.prompt == "edited" else edit.original_prompt


def _shared_region(edit: Edit, mask_o: Tensor, mask_e: Tensor) -> tuple[Tensor, Tensor]:
    """Masks of the original and the edited image: one mask on both where an object comes or goes (protocol §4)."""
    if edit.category == "add_object":
        return mask_e, mask_e
    if edit.category == "delete_object":
        return mask_o, mask_o
    return mask_o, mask_e
