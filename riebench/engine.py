"""The stages of a run on one machine: references, interventions, scores. Work goes through in groups of cases, so that
memory stays flat."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

from riebench.backbones import BACKBONES, BLOCK_NAMES, Backbone, blocks_text
from riebench.batches import fixed_batches
from riebench.compiling import compile_parts
from riebench.edits import Edit
from riebench.errors import UserError
from riebench.grounders import GROUNDERS
from riebench.grounding import ground, mask_to_grid
from riebench.interventions import Intervention
from riebench.lens import find_sites
from riebench.methods import Case, Method
from riebench.plan import MODE, Task, Variant
from riebench.sampling import Request, Sample, Sampler, choose_device, load_sampler
from riebench.scoring import Pictures, Scorer, eight_bits
from riebench.store import Batch
from sae_models import index

GROUP = 8  # cases whose results go through the U-Net together
SIDES = ("original", "edited")


@dataclass(frozen=True)
class Reference:
    """What all settings of a case share."""

    case: Case
    pictures: Pictures
    sample: Sample
    """The original image's, with its first step recorded."""
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
        case = self.reference.case
        return Request(case.edit.original_prompt, case.seed, self.intervention)

    @property
    def shows(self) -> str:
        """Which image the result is: "intervened", or a reference that need not be made again; "" for a failure."""
        if self.failure:
            return ""
        return "intervened" if self.intervention.additions else self.intervention.prompt


@dataclass(frozen=True)
class Result:
    """One row of the scores, and its image."""

    row: dict[str, object]
    image: Tensor | None
    """`[3, h, w]` in [0, 1], of 8 bits; None for a failure."""
    shows: str
    """As in `Planned.shows`."""


class Engine:
    """A loaded backbone with its grounder, dictionaries and metrics."""

    def __init__(self, sampler: Sampler, *, mask_rule: str = "touched") -> None:
        self.sampler, self.backbone, self.mask_rule = sampler, sampler.backbone, mask_rule
        self.grounder = GROUNDERS.get(self.backbone.grounder)(sampler.device)
        self.scorer = Scorer(self.backbone.judges, sampler.device)
        self.sae = cache(self._open_sae)

    def twin(self) -> Engine:
        """Another engine of the same weights, for another thread."""
        return Engine(self.sampler.twin(), mask_rule=self.mask_rule)

    def _open_sae(self, block: str):
        return index.open(index.find(self.backbone.dictionaries or self.backbone.name, block), device="cpu")

    def work(self, tasks: Sequence[Task], judges: str = "") -> Iterator[Batch]:
        """Everything that the tasks want, in batches to be written: first the reference pictures, then results.
        judges: the version of what scores, noted in every row."""
        methods = list(
            {id(wanted.variant.method): wanted.variant.method for t in tasks for wanted in t.wanted}.values()
        )
        before = self.sampler.forwards
        cases = [(task.edit, task.seed) for task in tasks]
        references = self.references(cases, methods, [task.pictures for task in tasks])
        yield _shared_batch(tasks, references, self.sampler.forwards - before)
        asked = [(reference, [w.variant for w in t.wanted]) for t, reference in zip(tasks, references, strict=True)]
        results = zip(((t, wanted) for t in tasks for wanted in t.wanted), self.results(asked), strict=True)
        before = self.sampler.forwards
        while batch := list(itertools.islice(results, self.sampler.batch_size)):
            rows, pictures = [], {}
            for (task, wanted), result in batch:
                path = getattr(task, result.shows, wanted).image if result.image is not None else ""
                if path == wanted.image:
                    pictures[path] = to_array(result.image)
                keys = {"recipe": wanted.recipe, "code": wanted.code, "judges": judges, "image": path}
                rows.append(result.row | keys)
            yield Batch(rows, pictures, self.sampler.forwards - before)
            before = self.sampler.forwards

    def references(
        self,
        cases: Sequence[tuple[Edit, int]],
        methods: Sequence[Method] = (),
        known: Sequence[Pictures | None] = (),
    ) -> list[Reference]:
        """Original and edited image, updates and what else the methods trace, and regions of every (edit, seed).

        known: for each case its pictures, where they were made before: they are not decoded and grounded again.
        """
        known = list(known) or [None] * len(cases)
        kinds = dict.fromkeys(["update", *(method.sites for method in methods if method.sites)])
        sites = [site for kind in kinds for site in find_sites(self.sampler.unet, BLOCK_NAMES, kind)]
        sides = [[Request(getattr(edit, f"{side}_prompt"), seed) for edit, seed in cases] for side in SIDES]
        made: dict[Request, Sample] = {}
        for is_known in (False, True):
            asked = [side[i] for side in sides for i, pictures in enumerate(known) if bool(pictures) == is_known]
            distinct = [request for request in dict.fromkeys(asked) if request not in made]
            samples = self.sampler.generate(distinct, sites, decode=not is_known, record=True)
            made |= dict(zip(distinct, samples, strict=True))
        originals, edited = ([made[request] for request in requests] for requests in sides)
        new = [i for i, pictures in enumerate(known) if pictures is None]
        found = dict(zip(new, self._look([(cases[i][0], originals[i], edited[i]) for i in new]), strict=True))
        return [self._reference(*case, originals[i], edited[i], known[i] or found[i]) for i, case in enumerate(cases)]

    def _look(self, cases: Sequence[tuple[Edit, Sample, Sample]]) -> list[Pictures]:
        """The pictures of cases, with the regions that are found in them."""
        if not cases:
            return []
        edits, *sides = zip(*cases, strict=True)
        masks_o, masks_e = (
            self._ground([sample.image for sample in samples], [getattr(edit, f"{side}_region") for edit in edits])
            for side, samples in zip(SIDES, sides, strict=True)
        )
        return [
            Pictures(eight_bits(original.image), eight_bits(edited.image), _shared_region(edit, masks_o[i], masks_e[i]))
            for i, (edit, original, edited) in enumerate(cases)
        ]

    def _ground(self, images: Sequence[Tensor], phrases: Sequence[str]) -> Tensor:
        """Masks `[b, h, w]` (bool) of the phrases in the images, in batches of one size."""
        found = []
        for batch, count in fixed_batches(list(zip(images, phrases, strict=True)), GROUP):
            shown, named = zip(*batch, strict=True)
            shown_bchw = torch.stack([eight_bits(image) for image in shown]).to(self.sampler.device)
            found.append(ground(self.grounder, shown_bchw, named)[:count].cpu())
        return torch.cat(found)

    def _reference(self, edit: Edit, seed: int, original: Sample, edited: Sample, pictures: Pictures) -> Reference:
        grids = {site.block: tuple(value.shape[-2:]) for site, value in original.trace.items()}
        cells_o, cells_e = (
            {block: mask_to_grid(mask[None], grid, self.mask_rule)[0] for block, grid in grids.items()}
            for mask in pictures.regions
        )
        empty = [
            name for name, cells in zip(SIDES, (cells_o, cells_e), strict=True) if not next(iter(cells.values())).any()
        ]
        failure = f"no region found in the {' and '.join(empty)} image" if empty else ""
        if not all(torch.isfinite(image).all() for image in (pictures.original, pictures.edited)):
            failure = "a reference image holds NaN"
        case = Case(edit, seed, original.trace, edited.trace, cells_o, cells_e, self.sae)
        return Reference(case, pictures, original, failure)

    def results(self, asked: Sequence[tuple[Reference, Sequence[Variant]]]) -> Iterator[Result]:
        """Generates and scores every variant that is asked of each reference, in batches, in their order."""
        planned = [item for reference, variants in asked for item in _plan(reference, variants)]
        edited = [item for item in planned if item.shows == "intervened"]
        images = self.sampler.regenerate([item.request for item in edited], [item.reference.sample for item in edited])
        for start in range(0, len(planned), self.sampler.batch_size):
            yield from self._results(planned[start : start + self.sampler.batch_size], images)

    def _results(self, planned: list[Planned], images: Iterator[Tensor]) -> list[Result]:
        """The results of one batch. images: those that are generated, in the order of the plan."""
        shown = [
            next(images) if item.shows == "intervened" else getattr(item.reference.pictures, item.shows, None)
            for item in planned
        ]
        broken = [image is not None and not torch.isfinite(image).all() for image in shown]
        shown = [image if image is None or bad else eight_bits(image) for image, bad in zip(shown, broken, strict=True)]
        whole = [i for i, image in enumerate(shown) if image is not None and not broken[i]]
        rows = [(planned[i].reference.case.edit, planned[i].reference.pictures, shown[i]) for i in whole]
        scores = dict(zip(whole, self.scorer.score(rows), strict=True))
        unscored = dict.fromkeys(self.scorer.names, float("nan"))
        return [
            Result(
                self._row(item, "the image holds NaN" if broken[i] else item.failure) | scores.get(i, unscored),
                shown[i] if i in scores else None,
                item.shows,
            )
            for i, item in enumerate(planned)
        ]

    def _row(self, item: Planned, reason: str) -> dict[str, object]:
        case, method = item.reference.case, item.variant.method
        first = next(iter(case.original_cells))
        return {
            "edit": case.edit.id,
            "category": case.edit.category,
            "seed": case.seed,
            "backbone": self.backbone.name,
            "steps": self.backbone.steps,
            "mode": MODE,
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
    backbone: str | Backbone,
    device: str = "auto",
    *,
    batch_size: int = 0,
    mask_rule: str = "touched",
    compiled: bool = False,
) -> Engine:
    """Loads a backbone by name, with all that judges its pictures.

    batch_size: 0 takes what suits the device. compiled: with torch.compile. Raises `UserError` where something is
    missing.
    """
    found = BACKBONES.get(backbone) if isinstance(backbone, str) else backbone
    sampler = load_sampler(found, choose_device(device), batch_size)
    if compiled:
        compile_parts(sampler.pipeline)
    return Engine(sampler, mask_rule=mask_rule)


def to_array(image_chw: Tensor) -> np.ndarray:
    """uint8 `[h, w, 3]` of an image of 8 bits in [0, 1]."""
    return (image_chw * 255).round().byte().permute(1, 2, 0).numpy()


def from_array(array_hwc: np.ndarray) -> Tensor:
    """The image that `to_array` was given."""
    return torch.from_numpy(array_hwc).permute(2, 0, 1).float() / 255


def regions_to_array(regions: Tensor) -> np.ndarray:
    """uint8 `[h, w]` of the two regions `[2, h, w]`: 85 where only the original's is, 170 the edited's, 255 both."""
    return (85 * regions[0].byte() + 170 * regions[1].byte()).numpy()


def regions_from_array(array_hw: np.ndarray) -> Tensor:
    """The regions that `regions_to_array` was given."""
    return torch.from_numpy(np.stack([array_hw & 1, array_hw & 2]) > 0)


def _shared_batch(tasks: Sequence[Task], references: Sequence[Reference], forwards: float) -> Batch:
    """What the cases share and was not there before, each picture by its key; without images that hold NaN."""
    rows, shown = [], {}
    for task, reference in zip(tasks, references, strict=True):
        if task.pictures is None:
            pictures = reference.pictures
            arrays = {task.regions: regions_to_array(pictures.regions)}
            for shared, image in ((task.original, pictures.original), (task.edited, pictures.edited)):
                if torch.isfinite(image).all():
                    arrays[shared] = to_array(image)
            for shared, array in arrays.items():
                shown[shared.image] = array
                rows.append(dataclasses.asdict(shared) | {"judges": "", "status": "ok"})
    return Batch(rows, shown, forwards)


def _shared_region(edit: Edit, mask_o: Tensor, mask_e: Tensor) -> Tensor:
    """Regions `[2, h, w]` of the original and the edited image: one on both where an object comes or goes
    (protocol §4)."""
    if edit.category == "add_object":
        mask_o = mask_e
    if edit.category == "delete_object":
        mask_e = mask_o
    return torch.stack([mask_o, mask_e])
