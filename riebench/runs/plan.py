"""What a run is to have: every result, by a key of all that decides it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from typing import TYPE_CHECKING

from riebench.analysis.coalitions import needed_subsets
from riebench.backbones.family import KINDS, blocks_text
from riebench.backbones.folders import backbone_folder, weights_for
from riebench.backbones.released import VAES
from riebench.backbones.table import Backbone
from riebench.core.errors import UserError, did_you_mean
from riebench.core.files import data_folder, file_sha256
from riebench.core.keys import digest
from riebench.core.precision import describe_float32
from riebench.core.versions import folder_digest
from riebench.edits.edit import Edit
from riebench.edits.phrases import mask_files
from riebench.generation.interventions import window_steps
from riebench.methods.means import feature_means
from riebench.methods.method import Method, uses_sae
from riebench.methods.text_index import find_text_index
from riebench.regions.grounders import GROUNDER_WEIGHTS, GROUNDERS, SHIPPED_WEIGHTS, grounder_settings
from riebench.runs.needs import index_remedy
from riebench.runs.setup import Setup
from riebench.runs.store import picture_path
from riebench.runs.versions import code_of, code_of_family, code_version
from sae_models import index

if TYPE_CHECKING:
    from riebench.runs.pictures import Pictures

DONORS = ("seed", "edit")  # a method's `select_on` that asks for another case
TEXT = "text"  # the one that asks for the prompts alone, and an index of what features go with which words


@dataclass(frozen=True)
class Variant:
    """One setting of a run: a method on a subset of the blocks. Empty `blocks` stands for no block at all."""

    method: Method
    blocks: tuple[str, ...]


@dataclass(frozen=True)
class Wanted:
    """A result that a run is to have."""

    variant: Variant
    recipe: str
    """Key of all that decides the result but the code: backbone, edit, seed, method, dictionaries, blocks."""
    code: str
    """Version of the code that computes it."""
    image: str
    """Where its picture lies, relative to the run directory."""


@dataclass(frozen=True)
class Shared:
    """A picture that all results of a case share: one of the two images, or the regions in them."""

    recipe: str
    code: str
    image: str


@dataclass(frozen=True)
class Task:
    """A case and what is wanted of it."""

    edit: Edit
    seed: int
    original: Shared
    edited: Shared
    regions: Shared
    wanted: tuple[Wanted, ...]
    donors: Mapping[str, tuple[Edit, int]] = field(default_factory=dict)
    """"seed" or "edit" -> the case that features are chosen on, for methods that ask for another than this one."""
    pictures: Pictures | None = None
    """The shared pictures, where they were made before and need not be made again."""

    @property
    def shared(self) -> tuple[Shared, ...]:
        """The pictures that all its results share: original, edited, regions."""
        return self.original, self.edited, self.regions


def plan_variants(methods: Sequence[Method], subsets_of: Collection[str], blocks: Sequence[str]) -> list[Variant]:
    """Returns each method on all of the blocks, and those named on the subsets that their effects are told from
    (`needed_subsets`), at the strength nearest 1. blocks: in the order of the model."""
    blocks = tuple(blocks)
    nearest = {
        name: min((m.strength for m in methods if m.name == name), key=lambda strength: (abs(strength - 1), strength))
        for name in {method.name for method in methods}.intersection(subsets_of)
    }
    return [
        variant_of(method, subset)
        for method in methods
        for subset in (
            needed_subsets(blocks) if nearest.get(method.name) == method.strength and method.sites else [blocks]
        )
    ]


def variant_of(method: Method, blocks: tuple[str, ...]) -> Variant:
    """Returns a method on some blocks; one that adds nothing has no blocks."""
    return Variant(method, blocks if method.sites else ())


def plan(
    backbone: Backbone,
    cases: Sequence[tuple[Edit, int]],
    variants: Sequence[Variant],
    setup: Setup,
    others: Sequence[Edit] = (),
    device: str = "cpu",
) -> list[Task]:
    """Returns the tasks of a run, with the keys of what they make.

    others: the edits out of which methods that ask for it are given another one to choose features on; by default those
    of the cases. device: "cpu" or "cuda", where the results are made. Raises `UserError` where a method holds what
    cannot be part of a key or what backbone or mode cannot do, and where weights are missing.
    """
    for variant in variants:
        _check(variant.method, backbone)
        setup.rules.check(variant.method)
    common = {
        "backbone": backbone.name,
        "model": _model(backbone, setup.dtype),
        "grounder": [
            backbone.grounder,
            grounder_settings(backbone.grounder, setup.grounder),
            _grounder_weights(backbone.grounder),
        ],
        "mask_rule": setup.mask_rule,
        "mode": setup.mode,
        **describe_float32(device, products=setup.rules.tf32_products),
    }
    with_sae = any(variant.blocks and uses_sae(variant.method) for variant in variants)
    dictionaries = {block: _fingerprint(backbone, setup, block) for block in backbone.blocks} if with_sae else {}
    code = digest([code_version(), code_of(GROUNDERS.get(backbone.grounder)), code_of_family(backbone.family)])
    settings = []
    for variant in variants:
        words = {
            "method": variant.method,
            "settings": _settings(variant.method),
            "blocks": variant.blocks,
            "sees": [site_of(variant.method, setup.site or backbone.family.default_site), backbone.blocks],
            "dictionaries": dictionaries if variant.blocks and uses_sae(variant.method) else {},
        }
        if getattr(variant.method, "select_on", "") == TEXT:
            remedy = index_remedy(backbone, setup)
            words["text_index"] = {block: find_text_index(of, remedy) for block, of in dictionaries.items()}
        if blocks := getattr(variant.method, "means_of", ()):
            remedy = index_remedy(backbone, setup)
            of = {block: setup.dictionary_of(backbone, block) for block in blocks}
            words["means"] = {block: feature_means(*found, remedy) for block, found in of.items()}
        settings.append((variant, digest(words), digest([code, code_of(variant.method)])))
    kinds = sorted({kind_of_donor(variant.method) for variant in variants} - {""})
    pool = list(others) or list(dict.fromkeys(edit for edit, _ in cases))
    stranger = cache(lambda edit: find_donor((edit, 0), "edit", pool)[0])  # the same for all seeds
    donors = [
        {kind: (stranger(edit), seed) if kind == "edit" else find_donor((edit, seed), kind, pool) for kind in kinds}
        for edit, seed in cases
    ]
    return [_task(common, *item, code, settings) for item in zip(cases, donors, strict=True)]


def site_of(method: Method, of_blocks: str) -> str:
    """Returns the kind of site that a method is to see and add to; "" for none.

    of_blocks: what it gets where it asks for "block". Raises `UserError` for an unknown `sites`.
    """
    kind = of_blocks if method.sites == "block" else method.sites
    if kind and kind not in KINDS:
        raise UserError(
            f"method {method.name!r} works on sites {kind!r}{did_you_mean(kind, KINDS)}",
            remedy=f"use block, {', '.join(KINDS)}, or '' where it adds nothing",
        )
    return kind


def kind_of_donor(method: Method) -> str:
    """Returns what other case a method chooses its features on: out of `DONORS`, or "" for none. Raises `UserError`
    for an unknown `select_on`."""
    kind = getattr(method, "select_on", "")
    if kind not in ("", *DONORS, TEXT):
        raise UserError(f"method {method.name!r} selects on {kind!r}", remedy=f"use {', '.join(DONORS)} or {TEXT}")
    return kind if kind in DONORS else ""


def find_donor(case: tuple[Edit, int], kind: str, others: Sequence[Edit]) -> tuple[Edit, int]:
    """Returns the case that features are chosen on for another.

    seed: the same edit with the next seed. edit: another edit out of `others` with the same seed, of another category
    where there is one; which one depends little on what `others` holds. It depends on nothing else that is run, so that
    shards of a run become the whole. Raises `UserError` where there is no other edit.
    """
    edit, seed = case
    if kind == "seed":
        return edit, seed + 1
    strangers = [one for one in others if one.category != edit.category] or [one for one in others if one != edit]
    if not strangers:
        raise UserError("there is no other edit to choose features on", remedy="give more edits")
    return min(strangers, key=lambda one: digest([edit.id, one.id])), seed


def _check(method: Method, backbone: Backbone) -> None:
    """Raises `UserError` where the backbone has not the steps or the rows that a method asks for."""
    window_steps(getattr(method, "window", "all"), backbone.steps)
    if getattr(method, "branch", "") == "uncond" and not backbone.guided:
        raise UserError(
            f"method {method.name!r} works on the unconditional row, which {backbone.name} has not",
            remedy="use branch cond or both, or a backbone with guidance",
        )


def _model(backbone: Backbone, dtype: str) -> dict[str, object]:
    """Returns all that decides a backbone's images. Files of the Hub are known by their revision, others by their
    bytes."""
    folder = backbone_folder(backbone, dtype)
    pinned = None if backbone.folder else weights_for(backbone, dtype)
    return {
        "weights": asdict(pinned) if pinned else folder_digest(folder),
        "vae": asdict(VAES[backbone.vae]) if backbone.vae else "",
        "steps": backbone.steps,
        "guidance": backbone.guidance,
        "size": [backbone.height, backbone.width],
        "dtype": dtype,
    }


def _grounder_weights(name: str) -> object:
    if name in SHIPPED_WEIGHTS:
        return file_sha256(data_folder() / SHIPPED_WEIGHTS[name])
    return [asdict(weights) for weights in GROUNDER_WEIGHTS.get(name, ())]


def _task(
    common: dict,
    case: tuple[Edit, int],
    donors: Mapping[str, tuple[Edit, int]],
    code: str,
    settings: Sequence[tuple[Variant, str, str]],
) -> Task:
    key, edit, seed = _case_key(common, case), *case
    of_donors = {kind: _case_key(common, donor) for kind, donor in donors.items()}
    shared, wanted = {}, []
    for name in ("original", "edited", "regions"):
        recipe = digest([key, name])
        shared[name] = Shared(recipe, code, picture_path(edit.id, seed, name, digest([recipe, code])))
    for variant, setting, version in settings:
        kind = kind_of_donor(variant.method)
        recipe = digest([key, setting, *([of_donors[kind]] if kind else [])])
        name = f"{variant.method.name}@{variant.method.strength:g}"
        blocks = f"-{blocks_text(variant.blocks)}" if variant.blocks else ""
        path = picture_path(edit.id, seed, name + blocks, digest([recipe, version]))
        wanted.append(Wanted(variant, recipe, version, path))
    return Task(edit, seed, **shared, wanted=tuple(wanted), donors=donors)


def _case_key(common: dict, case: tuple[Edit, int]) -> str:
    edit, seed = case
    masks = [file_sha256(path) for side in (edit.original_region, edit.edited_region) for path in mask_files(side)]
    return digest([common, asdict(edit), seed, *masks])


def _settings(method: Method) -> dict[str, object]:
    """Returns a method's public attributes that are plain values, also those that only its class has."""
    values = {name: getattr(method, name) for name in dir(method) if not name.startswith("_")}
    return {name: value for name, value in values.items() if isinstance(value, bool | int | float | str)}


def _fingerprint(backbone: Backbone, setup: Setup, block: str) -> str:
    """Returns the fingerprint of the dictionary that methods are given on a block."""
    try:
        entry, root = setup.dictionary_of(backbone, block)
        return index.fingerprint(entry, root=root)
    except UserError as error:
        raise UserError(f"methods are to get SAEs: {error}; or set uses_sae = False in one that uses none") from error
