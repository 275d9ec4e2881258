"""RunConfig: what a run is asked to do, read from YAML and overridden by flags. Imports no torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from baselines import METHODS
from riebench.backbones.own import backbone_from
from riebench.backbones.table import BACKBONES, DTYPES, Backbone
from riebench.core.claims import is_file
from riebench.core.errors import UserError, did_you_mean, shown
from riebench.core.files import named_path
from riebench.core.text import one_line, read_text
from riebench.core.values import BatchSize, Range, Seed, check_value, field_kinds
from riebench.core.yaml_text import YamlError, load_yaml
from riebench.methods.method import Method
from riebench.methods.modes import MODES, mode_named
from riebench.regions.grounders import GROUNDERS, grounder_settings
from riebench.runs.places import fixed, place
from riebench.runs.setup import Setup
from riebench.runs.suited import edits_for, settings_for

PRESETS = Path(__file__).parent / "presets"  # a folder for each kind of backbone (`Backbone.judges`)
#: Fields of a method's dataclass that say what it is, and are no settings; its name in tables is `label`.
NO_SETTINGS = ("name", "sites", "select_on", "sees_edited_image", "needs")


@dataclass(frozen=True)
class MethodConfig:
    """Names a method, with the settings of its dataclass."""

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    label: str = ""
    """Its name in tables, where that is not its own: a second setting of a method wants one."""

    def build(self, kind: str = "") -> Method:
        """Returns the method. kind: of the backbone (`Backbone.judges`), which decides what suits where a setting is
        not given (`riebench.runs.suited`); "" takes the defaults of the method's dataclass. Raises `UserError` for an
        unknown name or setting, and for a value that a setting cannot have."""
        factory, kinds = METHODS.get(self.name), setting_kinds(self.name)
        settings = settings_for(kind, self.name, self.settings)
        if kinds is not None:
            _refuse_unknown(settings, kinds, f"method {self.name!r} has no setting", "use")
            where = f"method {self.name!r}: "
            settings = {key: check_value(key, value, kinds[key], where) for key, value in settings.items()}
        label = {"name": self.label} if self.label else {}
        try:
            return factory(**settings, **label)
        except TypeError as error:
            raise UserError(f"method {self.name!r}: {error}", remedy="check its settings") from error


def setting_kinds(method: str) -> dict[str, Any] | None:
    """Returns what each setting of a method may be, as an annotation that `check_value` reads; `Any` where that cannot
    be known, and None for a method that is no dataclass. Raises `UserError` for an unknown method."""
    factory = METHODS.get(method)
    if not (isinstance(factory, type) and dataclasses.is_dataclass(factory)):
        return None
    return {name: kind for name, kind in field_kinds(factory).items() if name not in NO_SETTINGS}


@dataclass(frozen=True)
class RunConfig:
    """Says what a run is asked to do. Raises `UserError` for a value that a field cannot have."""

    backbone: str | Mapping[str, Any] = "tinyworld-turbo@1"
    """Name out of `riebench ls backbones`, or one's own, as `{name: mine@4, like: sdxl-turbo@4, folder: ...}`. Paths in
    a YAML file, as this folder, are seen from where the file lies."""
    mode: str = "strict"
    """strict, or reference: as the published code does (docs/reference-mode.md)."""
    dtype: str = "auto"
    """What the denoiser computes in: auto, float32, float16 or bfloat16."""
    grounder: str | Mapping[str, Any] = ""
    """Another grounder than the backbone's: its name, or `{name: clipseg, threshold: 0.3}`."""
    dictionary: str = ""
    """Name of the dictionaries that methods use (`riebench ls dictionaries`); empty for the benchmark's own."""
    dictionaries: str = ""
    """Folder of one's own dictionaries, as `riebench train` writes it."""
    edits: str = ""
    """Name of a shipped edit set, or a path, which is meant where both are; empty takes what suits the backbone:
    riebench, or tinyworld's own."""
    categories: tuple[str, ...] = ()
    """Which categories of it; empty for all."""
    split: str = ""
    """Which split of it: dev (to choose strengths on), test, or all; empty is test where there is one, and else all."""
    edits_per_category: Annotated[int, Range(0)] = 0
    """The first so many edits of each category; 0 takes all."""
    seeds: tuple[Seed, ...] = (42, 43, 44)
    """Seeds of the noise: a case is an edit with a seed."""
    methods: tuple[MethodConfig, ...] = (MethodConfig("noop"), MethodConfig("sae"))
    """Methods, in the order of the tables. `noop` must be among them: gains are measured from it."""
    blocks: tuple[str, ...] | None = None
    """The blocks that are traced, that dictionaries are wanted of and that methods act on, where they are not the
    backbone's own."""
    site: Literal["", "update", "stream"] = ""
    """What methods are given of a block: update or stream; empty for what the backbone's dictionaries read."""
    subsets_of: tuple[str, ...] | str = ("sae",)
    """The methods that are run on every subset of the blocks, to attribute their effects to them, at the strength
    nearest 1; the first gives the headline table. One name may be written without brackets."""
    metrics: tuple[str, ...] = ()
    """Metrics beside those that every run has (`riebench ls metrics`)."""
    mask_rule: str = ""
    """How an image mask becomes cells (protocol section 4): touched, as strict mode does where nothing is said, wide
    or half; reference mode has its own."""
    batch_size: BatchSize = 0
    """Images generated at once; 0 takes what suits the device, and halves it where memory runs out."""
    resamples: Annotated[int, Range(1, 1_000_000)] = 10_000
    """Bootstrap resamples behind every interval."""

    def __post_init__(self) -> None:
        for name, value in fixed(_checked(vars(self))).items():
            object.__setattr__(self, name, value)
        names = [method.label or method.name for method in self.methods]
        for needed in ("noop", *self.subsets_of):
            if needed not in names:
                raise UserError(f"the run has no method {needed!r}", remedy=f"add {needed!r} to methods")
        if self.dtype not in DTYPES:
            raise UserError(
                f"unknown dtype {self.dtype!r}{did_you_mean(self.dtype, DTYPES)}", remedy=f"use {', '.join(DTYPES)}"
            )
        only = mode_named(self.mode).seeds
        if only and self.seeds != only:
            raise UserError(
                f"{self.mode} mode has the seed {', '.join(map(str, only))} alone, not {list(self.seeds)}",
                remedy=f"leave seeds out, or give {list(only)}",
            )
        self.setup("float32")
        self.open_backbone()
        own = self._named_backbone.blocks
        if not self.edits:
            object.__setattr__(self, "edits", edits_for(self._named_backbone.judges))
        for name, remedy in (("seeds", "distinct whole numbers"), ("blocks", f"some, as {', '.join(own)}")):
            items = getattr(self, name)
            if items is not None and (not items or len(set(items)) != len(items)):
                raise UserError(f"{name} {list(items)} are empty or repeated", remedy=f"give {remedy}")

    def open_backbone(self) -> Backbone:
        """Returns the backbone, with the blocks and the grounder that are asked for."""
        found = self._named_backbone
        found = dataclasses.replace(found, blocks=self.blocks or found.blocks)
        name = self._grounder.get("name")
        if name is None:
            return found
        GROUNDERS.summary(name)  # an unknown name or setting is an error before anything is loaded
        grounder_settings(name, self.setup("float32").grounder)
        return dataclasses.replace(found, grounder=name)

    @property
    def _named_backbone(self) -> Backbone:
        return _backbone(self.backbone)

    def build_methods(self) -> list[Method]:
        """Returns its methods, with what suits the backbone where a setting is not given. Raises `UserError` as
        `MethodConfig.build` does."""
        return [method.build(self._named_backbone.judges) for method in self.methods]

    def setup(self, dtype: str) -> Setup:
        """Returns what all cases share; `dtype` is what is computed in on the device of the run."""
        return Setup(
            mode=self.mode,
            mask_rule=self.mask_rule or mode_named(self.mode).mask_rules[0],
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


def _backbone(named: str | Mapping[str, Any]) -> Backbone:
    return backbone_from(named, "backbone") if isinstance(named, Mapping) else BACKBONES.get(named)


def preset_names(kind: str = "*") -> list[str]:
    """Returns the names of the shipped runs of a kind of backbone (`Backbone.judges`), or of all kinds."""
    return sorted({path.stem for path in PRESETS.glob(f"{kind}/*.yaml")})


def read_config(name: str, overrides: Mapping[str, Any] | None = None) -> RunConfig:
    """Returns the configuration of a preset or a YAML file, with the overrides in the place of its values; where they
    ask for reference mode, its seed is taken too.

    The preset is that of the kind of the backbone that the overrides name (`Backbone.judges`); where they name none, of
    tinyworld, or else of the only kind that has one of that name. Paths in a YAML file are seen from its folder, those
    in the overrides from the current directory. Raises `UserError` for unknown or repeated keys, for values that are
    not allowed, and for broken YAML.
    """
    over = place(_checked(overrides or {}), Path())
    path = _file_of(name, over.get("backbone"))
    try:
        values = load_yaml(read_text(path))
    except YamlError as error:
        raise UserError(f"{path} is not YAML, line {error.line}: {error}", remedy="mend that line") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} holds no settings", remedy="write `key: value` lines, as in the shipped presets")
    found = _checked(values, f"{path}: ")
    found = found if path.is_relative_to(PRESETS) else place(found, path.parent)
    return RunConfig(**_with_seeds_of_mode(found | _with_seeds_of_mode(over)))


def _file_of(name: str, backbone: str | Mapping[str, Any] | None) -> Path:
    """Returns where a preset or a file of one's own lies. Raises `UserError` where there is none."""
    kind = _backbone(backbone or RunConfig.backbone).judges
    known = preset_names(kind) if backbone else preset_names()
    if name in known:
        of_kinds = [PRESETS / kind / f"{name}.yaml", *sorted(PRESETS.glob(f"*/{name}.yaml"))]
        return next(path for path in of_kinds if path.is_file())
    if name.strip() and is_file(named_path(name)):
        return named_path(name)
    of_kind = f" for a backbone that is judged as {kind}" if name in preset_names() else ""
    remedy = f"use {', '.join(known)} or a YAML file"
    raise UserError(f"there is no run {name!r}{of_kind}{did_you_mean(name, known)}", remedy=remedy)


def build_config(values: Mapping[str, Any], where: str) -> RunConfig:
    """Returns a RunConfig of plain values, as YAML gives them. where: what messages about a value begin with."""
    return RunConfig(**_with_seeds_of_mode(place(_checked(values, f"{where}: "), Path())))


def _checked(values: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    """Returns values of a run's fields, each as its annotation has it."""
    kinds = field_kinds(RunConfig)
    _refuse_unknown(values, kinds, f"{where}unknown key", "the keys are")
    checked = {key: check_value(key, value, kinds[key], where) for key, value in values.items()}
    if isinstance(checked.get("subsets_of"), str):
        checked["subsets_of"] = (checked["subsets_of"],)
    if "methods" in checked:
        checked["methods"] = tuple(method for item in checked["methods"] for method in _methods(where, item))
    return checked


def _refuse_unknown(values: Mapping[str, Any], known: Mapping[str, Any], what: str, remedy: str) -> None:
    for key in values:
        if key not in known:
            raise UserError(f"{what} {key!r}{did_you_mean(key, known)}", remedy=f"{remedy} {', '.join(known)}")


def _with_seeds_of_mode(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the values, with the seeds of a mode that has its own, where none are given."""
    only = MODES[values["mode"]].seeds if values.get("mode") in MODES else ()
    return ({"seeds": only} if only else {}) | dict(values)


def _methods(where: str, item: Any) -> list[MethodConfig]:
    """Returns one method, or one for each strength of a list."""
    if isinstance(item, MethodConfig):
        return [item]
    if isinstance(item, str):
        item = {"name": item}
    if not isinstance(item, Mapping) or not isinstance(item.get("name"), str):
        raise UserError(f"{where}a method is {shown(item)}", remedy="write `- name: sae` and its settings")
    METHODS.summary(item["name"])  # an unknown name is an error before anything is loaded
    label = check_value(f"the label of {item['name']!r}", item.get("label", ""), str, where)
    if label != one_line(label):
        raise UserError(f"{where}the label {shown(label)} is no line of text", remedy="leave out what is not shown")
    settings = {key: value for key, value in item.items() if key not in ("name", "label")}
    strengths = settings.get("strength")
    if not isinstance(strengths, list | tuple):
        return [MethodConfig(item["name"], settings, label)]
    if not strengths:
        raise UserError(f"{where}the strength of {item['name']!r} is []", remedy="give a number, or a list of some")
    return [MethodConfig(item["name"], settings | {"strength": one}, label) for one in strengths]
