"""References: what all settings of a case share, and the part of an engine that generates. No judges are needed
here."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache

import torch
from torch import Tensor

from riebench.backbones.family import LAYERED, Site
from riebench.backbones.loading import choose_device, choose_dtype
from riebench.backbones.table import Backbone
from riebench.core.errors import Unusable, UserError
from riebench.core.pictures import eight_bits, unusable
from riebench.core.precision import set_tf32
from riebench.edits.edit import Edit
from riebench.generation.compiling import compile_parts
from riebench.generation.interventions import Intervention, Push
from riebench.generation.retrace import Group, Retraced
from riebench.generation.sampler import Request, Sample, Sampler, load_sampler
from riebench.methods.means import feature_means
from riebench.methods.method import Case, Method, uses_sae
from riebench.methods.text_index import TextIndex, find_text_index
from riebench.regions.find import Regions
from riebench.runs.limits import refuse_many
from riebench.runs.needs import index_remedy
from riebench.runs.pictures import Pictures
from riebench.runs.setup import Setup
from sae_models import index
from sae_models.dictionary import Dictionary
from sae_models.tensors import dtype_name

SIDES = ("original", "edited")
#: Of one picture's trace of a kind that each layer has, above which it is read again where it is wanted.
HELD_BYTES = 64e6


@dataclass(frozen=True)
class Reference:
    """Holds what all settings of a case share. It can be held, and used for as many interventions as one likes."""

    case: Case
    pictures: Pictures
    sample: Sample
    """The original image's, with its first step recorded."""
    failure: str
    """Why the case cannot be run; empty where it can."""
    large: Mapping[str, tuple[Retraced, Retraced]] = field(default_factory=dict)
    """Kind of sites whose traces are not held -> those of the original and of the edited image."""
    donors: Mapping[str, Reference] = field(default_factory=dict)
    """"seed" or "edit" -> the case that features are chosen on, for methods that ask for another than this one."""

    def request(self, intervention: Intervention) -> Request:
        """Returns what is to be generated: the original prompt and noise, with an intervention."""
        return Request(self.case.edit.original_prompt, self.case.seed, intervention)

    def seen(self, kind: str, blocks: Collection[str] | None = None) -> Case:
        """Returns the case with the traces of one kind of site, in some blocks (None: in all)."""
        if kind in self.large:
            large = (trace if blocks is None else trace.within(blocks) for trace in self.large[kind])
            return dataclasses.replace(self.case, **dict(zip(SIDES, large, strict=True)))
        traces = {
            side: {
                site: value
                for site, value in getattr(self.case, side).items()
                if site.kind == kind and (blocks is None or site.block in blocks)
            }
            for side in SIDES
        }
        return dataclasses.replace(self.case, **traces)

    def as_donor(self) -> Reference:
        """Returns the same without what only its own results need: its recorded first step."""
        return dataclasses.replace(self, sample=dataclasses.replace(self.sample, first_steps=()))


class Generation:
    """Generates with one backbone, with and without interventions, and knows its dictionaries."""

    def __init__(self, sampler: Sampler, setup: Setup) -> None:
        self.sampler, self.backbone, self.setup = sampler, sampler.backbone, setup
        self.site = setup.site or self.backbone.family.default_site
        """The kind of site that dictionaries read, and that methods are given as "block"."""
        self.dictionary, self.text_index = cache(self._open_dictionary), cache(self._open_text_index)
        self.means = cache(self._open_means)
        self.trace_bytes = cache(self._trace_bytes)

    def twin(self) -> Generation:
        """Returns another one of the same weights, for another thread."""
        other = Generation(self.sampler.twin(), self.setup)
        other.dictionary, other.text_index = self.dictionary, self.text_index  # nobody writes to them
        other.means = self.means
        return other

    def image(self, prompt: str, seed: int = 42, intervention: Intervention | None = None) -> Tensor:
        """Returns the image `[3, h, w]` in [0, 1] of a prompt, with what is added while it is generated, on the CPU."""
        (sample,) = self.sampler.generate([Request(prompt, seed, intervention)])
        return sample.image

    def images(self, references: Sequence[Reference], interventions: Sequence[Intervention]) -> list[Tensor]:
        """Returns the image of each intervention on each reference, on the CPU, faster than anew: the first step is
        computed from the earliest edit on."""
        requests = [one.request(change) for one, change in zip(references, interventions, strict=True)]
        return [image.cpu() for image in self.sampler.regenerate(requests, [one.sample for one in references])]

    def intervention(
        self,
        features: Mapping[Site | str, Mapping[int, float | Push]],
        cells: Mapping[str, Tensor] | None = None,
        branch: str = "both",
    ) -> Intervention:
        """Returns `Intervention.from_features` by the dictionaries of this backbone.

        features: block, or site, -> feature -> its value, or a `Push`. cells: block -> bool `[cells]`; None is all.
        """
        parsed = {self._site(place): pushes for place, pushes in features.items()}
        blocks = list(dict.fromkeys(site.block for site in parsed))
        if cells is None:
            grids = self.sampler.grids(blocks)
            cells = {block: torch.ones(h * w, dtype=torch.bool) for block, (h, w) in grids.items()}
        cells = {block: where.to(self.sampler.device) for block, where in cells.items()}
        dictionaries: dict[Site, Dictionary] = {site: self.dictionary(site.block) for site in parsed}
        return Intervention.from_features(parsed, cells, dictionaries, self.backbone.steps, branch)

    def refuse_many(self, method: Method, kind: str) -> None:
        """Raises `UserError` where a method that uses no SAE is to choose more channels or neurons than there are at
        sites of a kind."""
        if kind and not uses_sae(method):
            widths: Counter[str] = Counter()
            for site in self._sites(kind):
                widths[site.block] += self.sampler.blocks.width(site)
            refuse_many(method, widths, self.setup.rules)

    def references(
        self,
        cases: Sequence[tuple[Edit, int]],
        kinds: Sequence[str],
        regions: Regions,
        known: Sequence[Pictures | None] = (),
    ) -> list[Reference]:
        """Returns original and edited image, traces, and regions of every (edit, seed).

        kinds: of the sites that are traced in the backbone's blocks. regions: what finds where they may change. known:
        for each case its pictures, where they were made before: they are not decoded and grounded again.
        """
        known = list(known) or [None] * len(cases)
        large = {kind: self._sites(kind) for kind in kinds if not self.holds(kind)}
        sites = [site for kind in kinds if kind not in large for site in self._sites(kind)]
        groups = {kind: Group(self.sampler, of) for kind, of in large.items()}
        sides = [[Request(getattr(edit, f"{side}_prompt"), seed) for edit, seed in cases] for side in SIDES]
        made: dict[Request, Sample] = {}
        for is_known in (False, True):
            asked = [side[i] for side in sides for i, pictures in enumerate(known) if bool(pictures) == is_known]
            distinct = [request for request in dict.fromkeys(asked) if request not in made]
            samples = self.sampler.generate(
                distinct, sites, decode=not is_known, record=True, branches=("cond",), keep_here=True
            )
            made |= dict(zip(distinct, samples, strict=True))
        originals, edited = ([made[request] for request in requests] for requests in sides)
        grids = self.sampler.grids(self.backbone.blocks)
        new = [i for i, pictures in enumerate(known) if pictures is None]
        shown = [(cases[i][0], originals[i], edited[i]) for i in new]
        found = dict(zip(new, self._look(shown, regions, next(iter(grids.values()))), strict=True))
        return [
            self._reference(*case, originals[i], edited[i], known[i] or found[i], regions, grids, groups)
            for i, case in enumerate(cases)
        ]

    def _trace_bytes(self, kind: str) -> int:
        """Returns the bytes of one picture's trace of a kind of sites in all blocks."""
        sampler, pixels = self.sampler, self.sampler.pipeline.vae_scale_factor
        size, dtype = (sampler.height, sampler.width), sampler.denoiser.dtype
        return sampler.blocks.trace_bytes(self.backbone.blocks, kind, self.backbone.steps, size, pixels, dtype)

    def holds(self, kind: str) -> bool:
        """Returns whether the traces of a kind of sites are held with a case, and not read again (`Retraced`)."""
        return kind not in LAYERED or self.trace_bytes(kind) <= HELD_BYTES

    def _sites(self, kind: str) -> tuple[Site, ...]:
        return self.sampler.blocks.sites(self.backbone.blocks, kind)

    def _look(
        self, cases: Sequence[tuple[Edit, Sample, Sample]], regions: Regions, grid: tuple[int, int]
    ) -> list[Pictures]:
        """Returns the pictures of cases, with the regions that are found in them."""
        if not cases:
            return []
        shown = [(edit, eight_bits(original.image), eight_bits(edited.image)) for edit, original, edited in cases]
        found = regions.find([(edit, *(image.nan_to_num() for image in images)) for edit, *images in shown], grid)
        return [Pictures(o, e, region.to(o.device)) for (_, o, e), region in zip(shown, found, strict=True)]

    def _reference(
        self,
        edit: Edit,
        seed: int,
        original: Sample,
        edited: Sample,
        pictures: Pictures,
        regions: Regions,
        grids: Mapping[str, tuple[int, int]],
        groups: Mapping[str, Group],
    ) -> Reference:
        pictures = pictures.to(self.sampler.device)
        cells_o, cells_e = (regions.cells(region, grids) for region in pictures.regions)
        pairs = zip(SIDES, (cells_o, cells_e), strict=True)
        empty = [side for side, cells in pairs if not next(iter(cells.values())).any()]
        failure = f"no region found in the {' and '.join(empty)} image" if empty else ""
        for found in unusable(torch.stack([pictures.original, pictures.edited]), "a reference image"):
            failure = found or failure
        case = Case(
            edit,
            seed,
            original.trace,
            edited.trace,
            cells_o,
            cells_e,
            self.dictionary,
            self.setup.rules,
            text=self.sampler.text_vector,
            text_index=self.text_index,
            means=self.means,
            grids=grids,
        )
        prompts = (edit.original_prompt, cells_o), (edit.edited_prompt, cells_e)
        large = {
            kind: tuple(group.add(Request(prompt, seed), cells) for prompt, cells in prompts)
            for kind, group in (groups if not failure else {}).items()
        }
        return Reference(case, pictures, original, failure, large)

    def _site(self, place: Site | str) -> Site:
        """Returns a site; a block's name alone stands for the kind that dictionaries read."""
        if isinstance(place, Site):
            return place
        return Site.parse(place) if "/" in place else Site(place, self.site)

    def _open_dictionary(self, block: str) -> Dictionary:
        """Returns the dictionary of a block. Raises `Unusable` where it is missing, broken or does not fit the
        block."""
        with _shared_by_all():
            entry, root = self.setup.dictionary_of(self.backbone, block)
            channels = self.sampler.blocks.width(Site(block, self.site))
            index.refuse_width(block, entry.width, channels, self.backbone.name)
            return index.open(entry, root=root, device=str(self.sampler.device))

    def _open_text_index(self, block: str) -> TextIndex:
        """Returns the text index of a block's dictionary. Raises `Unusable` where it is missing, broken or of another
        dictionary."""
        with _shared_by_all():
            entry, root = self.setup.dictionary_of(self.backbone, block)
            return find_text_index(index.fingerprint(entry, root=root), num_features=entry.num_features)

    def _open_means(self, block: str) -> Tensor:
        """Returns the mean of each feature of a block's dictionary. Raises `Unusable` where it is not known."""
        with _shared_by_all():
            remedy = index_remedy(self.backbone, self.setup)
            return feature_means(*self.setup.dictionary_of(self.backbone, block), remedy).to(self.sampler.device)


def open_generation(
    backbone: Backbone,
    device: str = "auto",
    *,
    setup: Setup | None = None,
    batch_size: int = 0,
    compiled: bool = False,
) -> Generation:
    """Returns the part of an engine that generates.

    setup: strict mode in the backbone's own dtype where nothing else is asked for. batch_size: 0 takes what suits the
    device. compiled: with torch.compile. On a GPU the mode decides on TF32 for the whole process: do not use engines of
    both modes in turns. Raises `UserError` where something is missing.
    """
    where = choose_device(device)
    setup = setup or Setup(dtype=dtype_name(choose_dtype(backbone, where)))
    set_tf32(where.type, products=setup.rules.tf32_products)
    sampler = load_sampler(backbone, where, batch_size, getattr(torch, setup.dtype))
    if compiled:
        compile_parts(backbone.family, sampler.pipeline)
    return Generation(sampler, setup)


@contextmanager
def _shared_by_all() -> Iterator[None]:
    """Makes a `UserError` of what all cases share an `Unusable` one."""
    try:
        yield
    except UserError as error:
        raise Unusable(error.message, remedy=error.remedy) from error
