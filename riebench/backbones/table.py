"""The models under test, as a frozen table, and one's own as an entry of the same kind. Imports no torch."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from riebench.core.errors import UserError, did_you_mean
from riebench.core.files import data_folder
from riebench.core.hub import Weights, missing_files, weights_folder
from riebench.core.registry import Registry

#: Short name of a block -> its module path in the U-Net (protocol §2), in the order in which the U-Net runs them.
BLOCKS = {
    "down.2.1": "down_blocks.2.attentions.1",
    "mid.0": "mid_block.attentions.0",
    "up.0.0": "up_blocks.0.attentions.0",
    "up.0.1": "up_blocks.0.attentions.1",
}
BLOCK_NAMES = tuple(BLOCKS)

#: What a backbone may be computed in. "auto" is float32 on a CPU and float16 on a GPU.
DTYPES = ("auto", "float32", "float16", "bfloat16")
FULL = ":float32"  # behind a backbone's name: what `riebench fetch` calls its float32 files
#: Memory to decode a pixel with SDXL's VAE in float32, beside its weights: at the full size its last block keeps three
#: tensors of 256 channels at once. A U-Net's call takes less. (Both counted in `tests/backbones/test_sdxl_shape.py`.)
DECODING_BYTES = 3 * 256 * 4

#: VAEs that may stand in the place of a repository's own, by the name that `riebench fetch` knows. They decode in half
#: precision; SDXL's own overflows there (protocol §3).
VAES = {
    "sdxl-vae-fp16-fix": Weights(
        "madebyollin/sdxl-vae-fp16-fix",
        "207b116dae70ace3637169f1ddd2434b91b3a8cd",
        ("config.json", "diffusion_pytorch_model.safetensors"),
        gigabytes=0.33,
    )
}


@dataclass(frozen=True)
class Backbone:
    """A diffusion model, and how the benchmark samples it."""

    name: str
    """As in `riebench run`: the model, `@`, its number of steps."""
    folder: str
    """Folder of a `StableDiffusionXLPipeline`, relative to the shipped data or absolute; empty for `weights`."""
    steps: int
    """Denoising steps."""
    guidance: float
    """Classifier-free guidance scale; 0 samples without it."""
    grounder: str
    """Name of the grounder that finds regions in its pictures."""
    judges: str
    """Family of the networks that score its pictures (`riebench.metrics.models.FAMILIES`)."""
    summary: str = ""
    dictionaries: str = ""
    """The backbone whose dictionaries are used on this one, where that is not itself: SAEs of one step carry over to
    more steps and to the model it was distilled from."""
    weights: Weights | None = None
    """The pipeline on the Hub with its half-precision files, where it has no folder."""
    weights_full: Weights | None = None
    """The same with its float32 files; given where `weights` is."""
    vae: str = ""
    """Name in `VAES` of the VAE in place of the pipeline's own."""
    height: int = 0
    """Of its pictures, in pixels; 0 is the model's own size."""
    width: int = 0
    dtype: str = "auto"
    """Out of `DTYPES`: what it is computed in where nothing else is asked for."""
    parameters: float = 0.0
    """Of the whole pipeline, in 10^9; 0 where that is not known."""

    @property
    def guided(self) -> bool:
        """Whether each step runs every row twice, without and with its prompt (diffusers: guidance above 1)."""
        return self.guidance > 1

    def gigabytes(self, dtype: str) -> float:
        """Memory to generate one picture at a time, an estimate in 10^9 bytes; 0 where it cannot be estimated.

        dtype: "float32", "float16" or "bfloat16". All parameters in that type, and what decoding a picture takes
        (`DECODING_BYTES` a pixel, half of that for a VAE that decodes in half precision). What CUDA itself takes, some
        0.5 GB, the networks that judge, and more pictures at once come on top.
        """
        if not (self.parameters and self.height and self.width):
            return 0.0
        size = 4 if dtype == "float32" else 2
        decoding = DECODING_BYTES * (size / 4 if self.vae else 1)
        return size * self.parameters + decoding * self.height * self.width / 1e9


_ENCODERS = tuple(f"{part}/config.json" for part in ("text_encoder", "text_encoder_2"))
_TOKENIZER = ("merges.txt", "special_tokens_map.json", "tokenizer_config.json", "vocab.json")
_SMALL_FILES = (
    "model_index.json",
    "scheduler/scheduler_config.json",
    *_ENCODERS,
    *(f"{part}/{file}" for part in ("tokenizer", "tokenizer_2") for file in _TOKENIZER),
    "unet/config.json",
    "vae/config.json",
)
_TENSOR_FILES = (
    "text_encoder/model",
    "text_encoder_2/model",
    "unet/diffusion_pytorch_model",
    "vae/diffusion_pytorch_model",
)


def _sdxl_weights(repo: str, revision: str) -> dict[str, Weights]:
    """The two fields of a pipeline that lies on the Hub as SDXL's do."""
    half = (*_SMALL_FILES, *(f"{file}.fp16.safetensors" for file in _TENSOR_FILES))
    full = (*_SMALL_FILES, *(f"{file}.safetensors" for file in _TENSOR_FILES))
    return {"weights": Weights(repo, revision, half, 6.94), "weights_full": Weights(repo, revision, full, 13.9)}


BACKBONES: Registry[Backbone] = Registry("backbone", "riebench.backbones")
for _model, _steps, _guidance, _summary in (
    ("turbo", 1, 0.0, "the embedded small SDXL Turbo, one step, 64 px"),
    ("turbo", 4, 0.0, "the same model, four Euler ancestral steps"),
    ("base", 25, 1.5, "the embedded small SDXL that tinyworld-turbo was distilled from, 25 Euler steps with guidance"),
):
    _name = f"tinyworld-{_model}@{_steps}"
    BACKBONES.add(
        _name,
        Backbone(
            _name,
            f"tinyworld/{_model}",
            _steps,
            _guidance,
            grounder="tinyworld",
            judges="tinyworld",
            summary=_summary,
            dictionaries="tinyworld-turbo@1",
            height=64,
            width=64,
            dtype="float32",
            parameters=0.0033,
        ),
        summary=_summary,
    )

_TURBO = _sdxl_weights("stabilityai/sdxl-turbo", "71153311d3dbb46851df1931d3ca6e939de83304")
_BASE = _sdxl_weights("stabilityai/stable-diffusion-xl-base-1.0", "462165984030d82259a11f4367a4eed129e94a7b")
for _model, _steps, _guidance, _pixels, _weights, _summary in (
    ("turbo", 1, 0.0, 512, _TURBO, "SDXL Turbo, one step, 512 px; wants a GPU"),
    ("turbo", 4, 0.0, 512, _TURBO, "the same model, four Euler ancestral steps"),
    ("base", 25, 8.0, 1024, _BASE, "SDXL base, 25 Euler steps with guidance, 1024 px; wants a GPU"),
):
    _name = f"sdxl-{_model}@{_steps}"
    BACKBONES.add(
        _name,
        Backbone(
            _name,
            "",
            _steps,
            _guidance,
            grounder="grounding-dino+sam2",
            judges="sdxl",
            summary=_summary,
            dictionaries="sdxl-turbo@1",
            height=_pixels,
            width=_pixels,
            parameters=3.47,  # U-Net 2.567, text encoders 0.123 and 0.695, VAE 0.084
            **_weights,
        ),
        summary=_summary,
    )


def backbone_folder(backbone: Backbone, dtype: str = "float32") -> Path:
    """Where a backbone's pipeline lies, with the files that are read for `dtype`: of float32, or of half precision.

    Raises `UserError` when it is not there, with what is missing and how to get it.
    """
    if backbone.weights is not None:
        return _hub_folder(backbone, dtype)
    folder = Path(backbone.folder) if Path(backbone.folder).is_absolute() else data_folder() / backbone.folder
    if not (folder / "model_index.json").is_file():
        raise UserError(
            f"the weights of {backbone.name} are not at {folder}",
            remedy="install riebench again, or make them with `riebench tinyworld train`"
            if is_shipped(backbone)
            else "give the folder with the model_index.json that diffusers' save_pretrained writes",
        )
    return folder


def is_shipped(backbone: Backbone) -> bool:
    """Whether its pipeline lies in the shipped data."""
    return backbone.weights is None and not Path(backbone.folder).is_absolute()


def weights_for(backbone: Backbone, dtype: str) -> Weights | None:
    """The files on the Hub that are read for `dtype`; None for a backbone that has a folder."""
    return backbone.weights_full if dtype == "float32" else backbone.weights


def vae_folder(backbone: Backbone) -> Path | None:
    """Where the VAE lies that stands in the place of the pipeline's own; None where none does.

    Raises `UserError` when it is not there.
    """
    return weights_folder(backbone.vae, VAES[backbone.vae]) if backbone.vae else None


def fetch_name(backbone: Backbone, dtype: str) -> str:
    """What `riebench fetch` calls the files that are read for `dtype`: the model in the table that has them, without
    its steps."""
    weights = weights_for(backbone, dtype)
    entries = (BACKBONES.get(name) for name in BACKBONES.names())
    known = next((entry.name for entry in entries if weights_for(entry, dtype) == weights), backbone.name)
    return known.partition("@")[0] + (FULL if dtype == "float32" else "")


def _hub_folder(backbone: Backbone, dtype: str) -> Path:
    """The folder in the Hub's cache. Where files are missing and those of the other precision are there, says so."""
    wanted, name = weights_for(backbone, dtype), fetch_name(backbone, dtype)
    other = "float16" if dtype == "float32" else "float32"
    missing = missing_files(wanted)
    if missing and not missing_files(weights_for(backbone, other)):
        kinds = {"float32": "float32", "float16": "half-precision"}
        has, lacks = kinds[other], kinds["float32" if dtype == "float32" else "float16"]
        raise UserError(
            f"of {wanted.repo} this machine has the {has} files and not the {lacks} ones ({', '.join(missing)})",
            remedy=f"run `riebench fetch {name}` ({wanted.gigabytes:g} GB), or use dtype {other}",
        )
    return weights_folder(name, wanted)


def backbone_from(values: Mapping[str, Any], where: str) -> Backbone:
    """A backbone of one's own, of plain values as YAML gives them.

    values: `name` (the model, "@", its steps), and `like` (a backbone in the table, whose fields are taken where none
    is given) or `folder` (of a diffusers pipeline; relative to the current directory, `~` is the home) or both. Without
    `like`, `steps` and `guidance` are needed, and what is left out is as for SDXL. The other keys are `grounder`,
    `judges`, `dictionaries`, `summary`, `vae`, `height`, `width`, `dtype`: fields of `Backbone`.
    where: what error messages begin with. Raises `UserError` for unknown, missing, mistyped or impossible values.
    """
    for key, value in values.items():
        if key not in _KEYS:
            raise UserError(
                f"{where}: unknown key {key!r} of a backbone{did_you_mean(key, _KEYS)}",
                remedy=f"the keys are {', '.join(_KEYS)}",
            )
        fits, remedy = _KEYS[key]
        if not fits(value):
            near = did_you_mean(value, {"like": BACKBONES.names(), "vae": VAES, "dtype": DTYPES}.get(key, ()))
            raise UserError(f"{where}: {key} is {value!r}{near}", remedy=remedy)
    if "like" in values:
        model = BACKBONES.get(values["like"])
        taken = vars(model) | {"summary": "", "dictionaries": model.dictionaries or model.name}
    else:
        taken = {"grounder": "grounding-dino+sam2", "judges": "sdxl"}
    own = {key: value for key, value in values.items() if key != "like"}
    if "folder" in own:
        own |= {"folder": str(Path(own["folder"]).expanduser().absolute()), "weights": None, "weights_full": None}
    if "guidance" in own:
        own["guidance"] = float(own["guidance"])
    for key in ("name", "folder", "steps", "guidance"):
        if key not in (own if key == "name" else taken | own):
            remedy = "give it" if key == "name" else "give it, or `like` with a name of `riebench ls backbones`"
            raise UserError(f"{where}: the backbone has no {key}", remedy=remedy)
    found = Backbone(**(taken | own))
    model, _, steps = found.name.rpartition("@")
    if int(steps) != found.steps:
        raise UserError(
            f"{where}: name is {found.name!r}, but the backbone has {found.steps} steps",
            remedy=f"name it {model}@{found.steps}, or give `steps: {steps}`",
        )
    return found


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _is_guidance(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and bool(re.fullmatch(r"[\w.+-]+@[1-9]\d*", value)) and value not in BACKBONES.names()


_PIXELS = (
    lambda value: _is_whole(value, 0) and value % 8 == 0,
    "give pixels, a multiple of 8; 0 is the model's own size",
)
#: What `backbone_from` reads: key -> (whether a value is possible, what to write).
_KEYS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "name": (
        _is_name,
        "give a name that is not taken: letters, digits, . _ + -, then @ and the steps, as in my-sdxl@4",
    ),
    "like": (lambda value: value in BACKBONES.names(), "use a name of `riebench ls backbones`"),
    "folder": (_is_text, "give the path of a diffusers pipeline"),
    "steps": (lambda value: _is_whole(value, 1), "give a whole number from 1 on"),
    "guidance": (_is_guidance, "give a number from 0 on; 0 samples without guidance"),
    "grounder": (_is_text, "give a name of `riebench ls grounders`"),
    "judges": (_is_text, "give a family of judges: sdxl or tinyworld"),
    "dictionaries": (_is_text, "give the name of the backbone whose dictionaries are used"),
    "summary": (_is_text, "give a line of text"),
    "vae": (lambda value: value in tuple(VAES), f"use {', '.join(VAES)}, or leave it out for the model's own"),
    "height": _PIXELS,
    "width": _PIXELS,
    "dtype": (lambda value: value in DTYPES, f"use {', '.join(DTYPES)}"),
}


def check_blocks(names: tuple[str, ...] | list[str]) -> tuple[str, ...]:
    """The given block names in U-Net order. Raises `UserError` for a name that is not a block."""
    for name in names:
        if name not in BLOCKS:
            raise UserError(f"unknown block {name!r}", remedy=f"use blocks out of {', '.join(BLOCKS)}")
    return tuple(name for name in BLOCKS if name in names)


def blocks_text(names: tuple[str, ...]) -> str:
    """As in the `blocks` column: names joined by "+" in U-Net order, "" for none."""
    return "+".join(check_blocks(names))
