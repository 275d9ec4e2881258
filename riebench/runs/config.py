"""RunConfig: what a run is asked to do, read from YAML and overridden by flags. Imports no torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from baselines import METHODS
from riebench.backbones.own import backbone_from
from riebench.backbones.table import BACKBONES, DTYPES, Backbone
from riebench.core.errors import UserError, did_you_mean
from riebench.regions.grounders import GROUNDERS, grounder_settings
from riebench.runs.setup import Setup

PRESETS = Path(__file__).parent / "presets"
REFERENCE_SEED = 42  # of every case, in the published code


@dataclass(frozen=True)
class MethodConfig:
    """A method by name, with the settings of its dataclass."""

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    label: str = ""
    """Its name in tables, where that is not its own: a second setting of a method wants one."""

    def build(self):
        """The method. Raises `UserError` for an unknown name or setting."""
        factory = METHODS.get(self.name)
        known = [f.name for f in dataclasses.fields(factory)] if dataclasses.is_dataclass(factory) else None
        for key in self.settings:
            if known is not None and key not in known:
                raise UserError(
                    f"method {self.name!r} has no setting {key!r}{did_you_mean(key, known)}",
                    remedy=f"use {', '.join(known)}",
                )
        label = {"name": self.label} if self.label else {}
        try:
            return factory(**self.settings, **label)
        except TypeError as error:
            raise UserError(f"method {self.name!r}: {error}", remedy="check its settings") from error


@dataclass(frozen=True)
class RunConfig:
    """What a run is asked to do."""

    backbone: str | Mapping[str, Any] = "tinyworld-turbo@1"
    """Name out of `riebench ls backbones`, or one's own, as `{name: mine@4, like: sdxl-turbo@4, folder: ...}`."""
    mode: str = "strict"
    """strict, or reference: as the published code does (docs/reference-mode.md)."""
    dtype: str = "auto"
    """What the U-Net computes in: auto, float32, float16 or bfloat16."""
    grounder: str | Mapping[str, Any] = ""
    """Another grounder than the backbone's: its name, or `{name: clipseg, threshold: 0.3}`."""
    dictionary: str = ""
    """Name of the dictionaries that methods use (`riebench ls dictionaries`); empty for the benchmark's own."""
    dictionaries: str = ""
    """Folder of one's own dictionaries, as `riebench train` writes it."""
    edits: str = "tinyworld"
    """Name of a shipped edit set, or a path."""
    categories: tuple[str, ...] = ()
    """Which categories of it; empty for all."""
    split: str = ""
    """Which split of it: dev (to choose strengths on), test, or all; empty is test where there is one, and else all."""
    edits_per_category: int = 0
    """The first so many edits of each category; 0 takes all."""
    seeds: tuple[int, ...] = (42, 43, 44)
    """Seeds of the noise: a case is an edit with a seed."""
    methods: tuple[MethodConfig, ...] = (MethodConfig("noop"), MethodConfig("sae"))
    """Methods, in the order of the tables. `noop` must be among them: gains are measured from it."""
    blocks: tuple[str, ...] = ()
    """The blocks that are traced, that dictionaries are wanted of and that methods act on; empty for the backbone's
    own."""
    site: str = ""
    """What methods are given of a block: update or stream; empty for what the backbone's dictionaries read."""
    subsets_of: tuple[str, ...] | str = ("sae",)
    """The methods that are run on every subset of the blocks, to attribute their effects to them, at the strength
    nearest 1; the first gives the headline table. One name may be written without brackets."""
    metrics: tuple[str, ...] = ()
    """Metrics beside those that every run has (`riebench ls metrics`)."""
    mask_rule: str = "touched"
    """How an image mask becomes cells: touched or half (protocol section 4); reference mode has its own."""
    batch_size: int = 0
    """Images generated at once; 0 takes what suits the device, and halves it where memory runs out."""
    resamples: int = 10_000
    """Bootstrap resamples behind every interval."""

    def __post_init__(self) -> None:
        if isinstance(self.subsets_of, str):
            object.__setattr__(self, "subsets_of", (self.subsets_of,))
        names = [method.label or method.name for method in self.methods]
        for needed in ("noop", *self.subsets_of):
            if needed not in names:
                raise UserError(f"the run has no method {needed!r}", remedy=f"add {needed!r} to methods")
        if self.dtype not in DTYPES:
            raise UserError(
                f"unknown dtype {self.dtype!r}{did_you_mean(self.dtype, DTYPES)}", remedy=f"use {', '.join(DTYPES)}"
            )
        if self.mode == "reference" and self.seeds != (REFERENCE_SEED,):
            raise UserError(
                f"reference mode has the seed {REFERENCE_SEED} alone, not {list(self.seeds)}",
                remedy=f"leave seeds out, or give [{REFERENCE_SEED}]",
            )
        self.open_backbone()
        self.setup("float32")
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise UserError(f"seeds {list(self.seeds)} are empty or repeated", remedy="give distinct whole numbers")
        if self.batch_size < 0 or self.resamples < 1 or self.edits_per_category < 0:
            raise UserError("resamples is at least 1, batch_size and edits_per_category at least 0", remedy="mend them")

    def open_backbone(self) -> Backbone:
        """The backbone, with the grounder that is asked for."""
        found = (
            backbone_from(self.backbone, "backbone")
            if isinstance(self.backbone, Mapping)
            else BACKBONES.get(self.backbone)
        )
        found = dataclasses.replace(found, blocks=self.blocks or found.blocks)
        name = self._grounder.get("name")
        if name is None:
            return found
        GROUNDERS.summary(name)  # an unknown name or setting is an error before anything is loaded
        grounder_settings(name, self.setup("float32").grounder)
        return dataclasses.replace(found, grounder=name)

    def setup(self, dtype: str) -> Setup:
        """What all cases share; `dtype` is what is computed in on the device of the run."""
        return Setup(
            mode=self.mode,
            mask_rule="published" if self.mode == "reference" else self.mask_rule,
            site=self.site,
            grounder={key: value for key, value in self._grounder.items() if key != "name"},
            dictionary=self.dictionary,
            dictionaries=self.dictionaries,
            dtype=dtype,
            metrics=self.metrics,
        )

    @property
    def _grounder(self) -> Mapping[str, Any]:
        if isinstance(self.grounder, Mapping):
            return self.grounder
        return {"name": self.grounder} if self.grounder else {}


def preset_names() -> list[str]:
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def read_config(name: str, overrides: Mapping[str, Any] | None = None) -> RunConfig:
    """The configuration of a preset or a YAML file. Raises `UserError` for unknown keys, wrong types, broken YAML."""
    path = PRESETS / f"{name}.yaml" if name in preset_names() else Path(name)
    if not path.is_file():
        raise UserError(
            f"there is no run {name!r}{did_you_mean(name, preset_names())}",
            remedy=f"use {', '.join(preset_names())} or a YAML file",
        )
    try:
        values = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path} is not YAML: {' '.join(str(error).split())}", remedy="mend that line") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} holds no settings", remedy="write `key: value` lines, as in the shipped presets")
    return build_config({**values, **(overrides or {})}, where=str(path))


def build_config(values: Mapping[str, Any], where: str) -> RunConfig:
    """A RunConfig of plain values, as YAML gives them."""
    known = {f.name: f.default for f in dataclasses.fields(RunConfig)}
    checked: dict[str, Any] = {}
    for key, value in values.items():
        if key not in known:
            raise UserError(
                f"{where}: unknown key {key!r}{did_you_mean(key, known)}", remedy=f"the keys are {', '.join(known)}"
            )
        checked[key] = _typed(where, key, value, known[key])
    if checked.get("mode") == "reference":
        checked.setdefault("seeds", (REFERENCE_SEED,))
    return RunConfig(**checked)


def _typed(where: str, key: str, value: Any, default: Any) -> Any:
    if key in ("backbone", "grounder") and isinstance(value, Mapping):
        return dict(value)
    if key == "subsets_of" and isinstance(value, str):
        return (value,)
    if key == "methods":
        return tuple(method for item in _list(where, key, value) for method in _methods(where, item))
    if isinstance(default, tuple):
        kind = type(default[0]) if default else str
        return tuple(_scalar(where, key, item, kind) for item in _list(where, key, value))
    return _scalar(where, key, value, type(default))


def _list(where: str, key: str, value: Any) -> list:
    if not isinstance(value, list | tuple):
        raise UserError(f"{where}: {key} is {value!r}, not a list", remedy=f"write {key}: [..., ...]")
    return list(value)


def _scalar(where: str, key: str, value: Any, kind: type) -> Any:
    if not isinstance(value, kind) or isinstance(value, bool):
        raise UserError(f"{where}: {key} holds {value!r}", remedy=f"give {'a whole number' if kind is int else 'text'}")
    return value


def _methods(where: str, item: Any) -> list[MethodConfig]:
    """One method, or one for each strength of a list."""
    if isinstance(item, str):
        item = {"name": item}
    if not isinstance(item, dict) or not isinstance(item.get("name"), str):
        raise UserError(f"{where}: a method is {item!r}", remedy="write `- name: sae` and its settings")
    METHODS.summary(item["name"])  # an unknown name is an error before anything is loaded
    settings = {key: value for key, value in item.items() if key not in ("name", "label")}
    strengths = settings.get("strength")
    each = [settings | {"strength": one} for one in strengths] if isinstance(strengths, list) else [settings]
    return [MethodConfig(item["name"], one, str(item.get("label", ""))) for one in each]
