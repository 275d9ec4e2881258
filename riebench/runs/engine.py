"""The stages of a run on one machine: references, interventions, scores. Work goes through in groups of cases, so that
memory stays flat."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import psutil
import torch
from torch import Tensor

from riebench.backbones.family import blocks_text
from riebench.backbones.loading import choose_device, choose_dtype
from riebench.backbones.table import BACKBONES, Backbone
from riebench.core.errors import UserError
from riebench.core.pictures import eight_bits, regions_to_array, to_array, unusable
from riebench.edits.edit import Edit
from riebench.generation.compiling import compile_parts
from riebench.generation.interventions import Intervention
from riebench.generation.sampler import Request, load_sampler
from riebench.generation.sharing import twin_of
from riebench.methods.method import Method
from riebench.regions.find import Regions
from riebench.regions.grounders import GROUNDERS
from riebench.runs.pictures import Pictures
from riebench.runs.plan import Task, Variant, kind_of_donor, site_of
from riebench.runs.reference import SIDES, Generation, Reference, seen_by
from riebench.runs.scoring import Scorer
from riebench.runs.setup import Setup
from riebench.runs.store import Batch
from sae_models.tensors import dtype_name

GROUP = 8  # the most cases whose results go through the denoiser together
TRACES_SHARE = 0.25  # of the free memory, that the traces of a group may take


@dataclass(frozen=True)
class Planned:
    """A result to be generated, or the reason why it cannot be."""

    reference: Reference
    variant: Variant
    intervention: Intervention
    failure: str

    @property
    def request(self) -> Request:
        return self.reference.request(self.intervention)

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
    """Does the stages of a run, in three parts: generation, regions and scores. Grounder and judges are loaded when
    they are first needed, or by `load`."""

    def __init__(self, generation: Generation, regions: Regions | None = None, scorer: Scorer | None = None) -> None:
        self.generation, self.setup = generation, generation.setup
        self.sampler, self.backbone = generation.sampler, generation.backbone
        self._regions, self._scorer = regions, scorer

    @property
    def regions(self) -> Regions:
        """What finds regions. Raises `UserError` where the grounder's weights are missing."""
        if self._regions is None:
            grounder = GROUNDERS.get(self.backbone.grounder)(self.sampler.device, **self.setup.grounder)
            self._regions = Regions(grounder, self.setup.rules.look, self.setup.mask_rule)
        return self._regions

    @property
    def scorer(self) -> Scorer:
        """What scores. Raises `UserError` where the judges' weights are missing."""
        if self._scorer is None:
            judges, names = self.backbone.judges, self.setup.metric_names(self.backbone.judges)
            self._scorer = Scorer(judges, self.sampler.device, keep_marks=self.setup.keeps_marks, names=names)
        return self._scorer

    def load(self) -> Engine:
        """Loads grounder and judges now, so that what is missing is said before anything is generated."""
        _ = self.regions, self.scorer
        return self

    def twin(self) -> Engine:
        """Returns another engine for another thread. All weights are shared: the model's, the dictionaries', the
        grounder's and the judges'."""
        found = self.regions
        regions = Regions(twin_of(found.grounder), found.look, found.mask_rule)
        return Engine(self.generation.twin(), regions, self.scorer.twin())

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
        """Returns how many cases' traces fit into the share of the free memory that is theirs: of two images each,
        under guidance of two rows each, and an addition as large; as much again for each other case that is looked
        at."""
        sampler, blocks = self.sampler, self.backbone.blocks
        size, pixels = (sampler.height, sampler.width), sampler.pipeline.vae_scale_factor
        one = sum(
            sampler.blocks.trace_bytes(blocks, kind, self.backbone.steps, size, pixels, sampler.denoiser.dtype)
            for kind in self._kinds(methods)
        )
        looked_at = {kind_of_donor(method) for method in methods} | {""}
        each = one * (5 if self.backbone.guided else 3) * len(looked_at)
        return max(1, int(TRACES_SHARE * psutil.virtual_memory().available / each))

    def _kinds(self, methods: Sequence[Method]) -> tuple[str, ...]:
        """Returns the kinds of sites that methods are to see traces of, the blocks' own first."""
        kinds = (site_of(method, self.generation.site) for method in methods if method.sites)
        return tuple(dict.fromkeys([self.generation.site, *kinds]))

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
        """Returns the references of cases, with traces of what the methods ask for (`Generation.references`)."""
        return self.generation.references(cases, self._kinds(methods), self.regions, known)

    def plan(self, reference: Reference, method: Method) -> Intervention:
        """Returns what a method does to a case, in all blocks. Raises `UserError` where it cannot do anything."""
        intervention, failure = self._ask(method, reference)
        if failure or reference.failure:
            raise UserError(reference.failure or failure, remedy="change the region, the seed or the method")
        return intervention

    def results(self, asked: Sequence[tuple[Reference, Sequence[Variant]]]) -> Iterator[Result]:
        """Generates and scores every variant that is asked of each reference, in batches, in their order."""
        planned = [item for reference, variants in asked for item in self._plan(reference, variants)]
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
        broken = ["" if image is None else unusable(image, "the image") for image in shown]
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

    def _plan(self, reference: Reference, variants: Sequence[Variant]) -> Iterator[Planned]:
        """Yields every variant of a reference. Each method plans once, on all blocks; a variant is that plan
        restricted."""
        plans: dict[int, tuple[Intervention, str]] = {}
        for variant in variants:
            method = variant.method
            if id(method) not in plans:
                blocked = reference.failure
                plans[id(method)] = (Intervention(), blocked) if blocked else self._ask(method, reference)
            intervention, failure = plans[id(method)]
            yield Planned(reference, variant, intervention.restricted(variant.blocks), failure)

    def _ask(self, method: Method, reference: Reference) -> tuple[Intervention, str]:
        """Returns a method's plan of a case, of which it sees the sites it asked for; or why it has none."""
        kind = site_of(method, self.generation.site)
        case = seen_by(reference.case, kind)
        if kind and not case.original:
            return Intervention(), f"{method.name}: the case has no trace of {kind}; name the method when it is made"
        donor_kind = kind_of_donor(method)
        if donor_kind:
            donor = reference.donors.get(donor_kind)
            if donor is None:
                return Intervention(), f"{method.name}: there is no other case to choose features on"
            if donor.failure:
                return Intervention(), f"{method.name}: the case to choose features on cannot be used: {donor.failure}"
            case = dataclasses.replace(case, select_on=seen_by(donor.case, kind))
        try:
            return method.plan(case), ""
        except UserError as error:
            return Intervention(), f"{method.name}: {error}"


def open_engine(
    backbone: str | Backbone,
    device: str = "auto",
    *,
    setup: Setup | None = None,
    batch_size: int = 0,
    compiled: bool = False,
) -> Engine:
    """Returns an engine of a backbone, by name. What judges its pictures is loaded when it is first asked for.

    setup: strict mode in the backbone's own dtype where nothing else is asked for. batch_size: 0 takes what suits the
    device. compiled: with torch.compile. Raises `UserError` where something is missing.
    """
    found = BACKBONES.get(backbone) if isinstance(backbone, str) else backbone
    where = choose_device(device)
    setup = setup or Setup(dtype=dtype_name(choose_dtype(found, where)))
    sampler = load_sampler(found, where, batch_size, getattr(torch, setup.dtype))
    if compiled:
        compile_parts(found.family, sampler.pipeline)
    return Engine(Generation(sampler, setup))


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
