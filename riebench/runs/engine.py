"""The stages of a run on one machine: references, interventions, scores. Work goes through in groups of cases, so that
memory stays flat."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache

import numpy as np
import psutil
import torch
from torch import Tensor

from riebench.backbones.loading import choose_device, choose_dtype, is_black, trace_bytes
from riebench.backbones.table import BACKBONES, BLOCK_NAMES, Backbone, blocks_text
from riebench.core.errors import UserError
from riebench.edits.edit import Edit
from riebench.generation.compiling import compile_parts
from riebench.generation.interventions import Intervention
from riebench.generation.lens import find_sites
from riebench.generation.sampler import Request, Sample, Sampler, load_sampler
from riebench.methods.method import Case, Method
from riebench.methods.text_index import TextIndex, find_text_index
from riebench.regions.find import find_regions, region_cells
from riebench.regions.grounders import GROUNDERS
from riebench.runs.plan import Task, Variant, kind_of_donor
from riebench.runs.scoring import Pictures, Scorer, eight_bits
from riebench.runs.setup import Setup
from riebench.runs.store import Batch
from sae_models import index
from sae_models.tensors import dtype_name

GROUP = 8  # the most cases whose results go through the U-Net together
TRACES_SHARE = 0.25  # of the free memory, that the traces of a group may take
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
    donors: Mapping[str, Reference] = field(default_factory=dict)
    """"seed" or "edit" -> the case that features are chosen on, for methods that ask for another than this one."""


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
        return "intervened" if self.intervention.sites else self.intervention.prompt


@dataclass(frozen=True)
class Result:
    """One row of the scores, and its image."""

    row: dict[str, object]
    image: Tensor | None
    """`[3, h, w]` in [0, 1], of 8 bits; None for a failure."""
    shows: str
    """As in `Planned.shows`."""
    chosen: Mapping[str, Mapping[str, list[int]]]
    """As in `Intervention.chosen`."""


class Engine:
    """A loaded backbone with its grounder, dictionaries and metrics."""

    def __init__(self, sampler: Sampler, setup: Setup) -> None:
        self.sampler, self.backbone, self.setup = sampler, sampler.backbone, setup
        self.grounder = GROUNDERS.get(self.backbone.grounder)(sampler.device, **setup.grounder)
        judges, names = self.backbone.judges, setup.metric_names(self.backbone.judges)
        self.scorer = Scorer(judges, sampler.device, keep_marks=setup.keeps_marks, names=names)
        self.sae, self.text_index = cache(self._open_sae), cache(self._open_text_index)

    def twin(self) -> Engine:
        """Another engine of the same weights, for another thread."""
        return Engine(self.sampler.twin(), self.setup)

    def _open_sae(self, block: str):
        entry, root = self.setup.dictionary_of(self.backbone, block)
        return index.open(entry, root=root, device="cpu")

    def _open_text_index(self, block: str) -> TextIndex:
        entry, root = self.setup.dictionary_of(self.backbone, block)
        return find_text_index(index.fingerprint(entry, root=root))

    def work(self, tasks: Sequence[Task], judges: str = "") -> Iterator[Batch]:
        """Everything that the tasks want, in batches to be written: first the reference pictures, then results; in
        smaller groups where the traces of all tasks would not fit into memory. judges: the version of what scores,
        noted in every row."""
        methods = list(
            {id(wanted.variant.method): wanted.variant.method for t in tasks for wanted in t.wanted}.values()
        )
        size = self._cases_at_once(methods)
        for start in range(0, len(tasks), size):
            yield from self._work(tasks[start : start + size], methods, judges)

    def _cases_at_once(self, methods: Sequence[Method]) -> int:
        """How many cases' traces fit into the share of the free memory that is theirs: of two images each, under
        guidance of two rows each, and an addition as large; as much again for each other case that is looked at."""
        sampler, kinds = self.sampler, {"update", *(method.sites for method in methods if method.sites)}
        shape = self.backbone.steps, sampler.height, sampler.width, sampler.unet.dtype
        one = sum(trace_bytes(sampler.unet, kind, *shape, sampler.pipeline.vae_scale_factor) for kind in kinds)
        looked_at = {kind_of_donor(method) for method in methods} | {""}
        each = one * (5 if self.backbone.guided else 3) * len(looked_at)
        return max(1, int(TRACES_SHARE * psutil.virtual_memory().available / each))

    def _work(self, tasks: Sequence[Task], methods: Sequence[Method], judges: str) -> Iterator[Batch]:
        before = self.sampler.forwards
        cases = [(task.edit, task.seed) for task in tasks]
        donors = dict.fromkeys(donor for task in tasks for donor in task.donors.values() if donor not in cases)
        pictures = [*(task.pictures for task in tasks), *([None] * len(donors))]
        found = self.references([*cases, *donors], methods, pictures)
        made = dict(zip([*cases, *donors], found, strict=True))
        references = [
            dataclasses.replace(made[case], donors={kind: made[donor] for kind, donor in task.donors.items()})
            for case, task in zip(cases, tasks, strict=True)
        ]
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
                shared = {side: getattr(task, side).image for side in (*SIDES, "regions")}
                rows.append(result.row | keys | shared)
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
        shown = [(edit, eight_bits(original.image), eight_bits(edited.image)) for edit, original, edited in cases]
        grid = next(iter(cases[0][1].trace.values())).shape[-2:]
        there = [(e, *(image.to(self.sampler.device).nan_to_num() for image in images)) for e, *images in shown]
        regions = find_regions(self.grounder, there, self.setup.mode, tuple(grid))
        return [Pictures(o, e, region) for (_, o, e), region in zip(shown, regions, strict=True)]

    def _reference(self, edit: Edit, seed: int, original: Sample, edited: Sample, pictures: Pictures) -> Reference:
        grids = {site.block: tuple(value.shape[-2:]) for site, value in original.trace.items()}
        cells_o, cells_e = (
            {block: region_cells(region, grid, self.setup.mask_rule) for block, grid in grids.items()}
            for region in pictures.regions
        )
        empty = [
            name for name, cells in zip(SIDES, (cells_o, cells_e), strict=True) if not next(iter(cells.values())).any()
        ]
        failure = f"no region found in the {' and '.join(empty)} image" if empty else ""
        for image in (pictures.original, pictures.edited):
            failure = _unusable(image, "a reference image") or failure
        if self.setup.mode == "reference" and edit.category == "delete_object":
            edited = original  # the published code deletes an object with what lies around it in the original image
        case = Case(
            edit,
            seed,
            original.trace,
            edited.trace,
            cells_o,
            cells_e,
            self.sae,
            self.setup.mode,
            text=self.sampler.text_vector,
            text_index=self.text_index,
        )
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
        broken = ["" if image is None else _unusable(image, "the image") for image in shown]
        shown = [image if image is None or bad else eight_bits(image) for image, bad in zip(shown, broken, strict=True)]
        whole = [i for i, image in enumerate(shown) if image is not None and not broken[i]]
        rows = [(planned[i].reference.case.edit, planned[i].reference.pictures, shown[i]) for i in whole]
        scores = dict(zip(whole, self.scorer.score(rows), strict=True))
        unscored = dict.fromkeys(self.scorer.names, float("nan"))
        return [
            Result(
                self._row(item, broken[i] or item.failure) | scores.get(i, unscored),
                shown[i] if i in scores else None,
                item.shows,
                item.intervention.chosen,
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
            "mode": self.setup.mode,
            "dtype": self.setup.dtype,
            "method": method.name,
            "strength": float(method.strength),
            "blocks": blocks_text(item.variant.blocks),
            "branch": item.intervention.branch if self.backbone.guided and item.intervention.sites else "",
            "window": item.intervention.window if item.intervention.sites else "",
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
            plans[id(method)] = (Intervention(), reference.failure) if reference.failure else _ask(method, reference)
        intervention, failure = plans[id(method)]
        yield Planned(reference, variant, intervention.restricted(variant.blocks), failure)


def _ask(method: Method, reference: Reference) -> tuple[Intervention, str]:
    """A method's plan of a case, of which it sees the sites it asked for; or why it has none."""
    case = _seen(reference.case, method.sites)
    kind = kind_of_donor(method)
    if kind:
        donor = reference.donors[kind]
        if donor.failure:
            return Intervention(), f"{method.name}: the case to choose features on cannot be used: {donor.failure}"
        case = dataclasses.replace(case, select_on=_seen(donor.case, method.sites))
    try:
        return method.plan(case), ""
    except UserError as error:
        return Intervention(), f"{method.name}: {error}"


def _seen(case: Case, kind: str) -> Case:
    """The case with the traces of one kind of site."""
    traces = {side: {site: value for site, value in getattr(case, side).items() if site.kind == kind} for side in SIDES}
    return dataclasses.replace(case, **traces)


def _unusable(image_chw: Tensor, what: str) -> str:
    """Why an image cannot be scored; empty where it can."""
    if not torch.isfinite(image_chw).all():
        return f"{what} holds NaN: half precision overflowed; use dtype bfloat16 or float32"
    return f"{what} is black: the decoder overflowed; use dtype bfloat16 or float32" if is_black(image_chw) else ""


def open_engine(
    backbone: str | Backbone,
    device: str = "auto",
    *,
    setup: Setup | None = None,
    batch_size: int = 0,
    compiled: bool = False,
) -> Engine:
    """Loads a backbone by name, with all that judges its pictures.

    setup: strict mode in the backbone's own dtype where nothing else is asked for. batch_size: 0 takes what suits the
    device. compiled: with torch.compile. Raises `UserError` where something is missing.
    """
    found = BACKBONES.get(backbone) if isinstance(backbone, str) else backbone
    where = choose_device(device)
    setup = setup or Setup(dtype=dtype_name(choose_dtype(found, where)))
    sampler = load_sampler(found, where, batch_size, getattr(torch, setup.dtype))
    if compiled:
        compile_parts(sampler.pipeline)
    return Engine(sampler, setup)


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
