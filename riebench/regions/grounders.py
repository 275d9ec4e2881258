"""The grounders by name, with their weights and settings. Imports no torch, so that listing them is quick."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from riebench.core.errors import UserError, did_you_mean
from riebench.core.hub import Weights
from riebench.core.registry import Registry

if TYPE_CHECKING:
    from torch import Tensor

#: How an image's mask becomes cells (`grounding.mask_to_grid`).
MASK_RULES = ("touched", "wide", "half", "published")


class Grounder(Protocol):
    """Finds what nouns name in images. Every grounder knows the noun "foreground" as well as it can."""

    settings: Mapping[str, object]
    """All that decides its masks beside its weights: thresholds, names of models. Plain values, for keys."""

    def detections(self, images_bchw: Tensor, phrases: Sequence[tuple[str, ...]]) -> list[Tensor]:
        """Returns for each image what any of its nouns names: bool `[n, h, w]` on the image's device, one mask a
        detection.

        images_bchw: float in [0, 1]. phrases: one tuple of nouns an image. n is 0 where nothing is found.
        """
        ...


#: Name -> loader `(device, **settings) -> Grounder`.
GROUNDERS: Registry[Callable[..., Grounder]] = Registry("grounder", "riebench.grounders")
for _name, _target, _summary in (
    ("tinyworld", "riebench.tinyworld.grounder:load", "segments the object and its accessories in tinyworld pictures"),
    (
        "grounding-dino+sam2",
        "riebench.regions.segmenters.grounding_dino_sam2:load",
        "GroundingDINO's boxes to SAM 2.1's masks, as published",
    ),
    (
        "sam3",
        "riebench.regions.segmenters.sam3:load",
        "SAM 3: every instance of a noun phrase; its weights ask for a login",
    ),
    (
        "clipseg",
        "riebench.regions.segmenters.clipseg:load",
        "CLIPSeg: one soft mask a noun phrase, the smallest to download",
    ),
    (
        "everything",
        "riebench.regions.segmenters.everything:load",
        "the whole image whatever the phrase, without any weights",
    ),
):
    GROUNDERS.add(_name, _target, summary=_summary)

#: Name -> weights, relative to the shipped data, of the grounders that do not bring their own.
SHIPPED_WEIGHTS = {"tinyworld": "tinyworld/grounder.safetensors"}

#: Name -> weights on the Hub, in the order in which the grounder uses them.
GROUNDER_WEIGHTS: dict[str, tuple[Weights, ...]] = {
    "grounding-dino+sam2": (
        Weights(
            repo="IDEA-Research/grounding-dino-tiny",
            revision="a2bb814dd30d776dcf7e30523b00659f4f141c71",
            files=(
                "config.json",
                "model.safetensors",
                "preprocessor_config.json",
                "special_tokens_map.json",
                "tokenizer.json",
                "tokenizer_config.json",
                "vocab.txt",
            ),
            gigabytes=0.69,
        ),
        Weights(
            repo="facebook/sam2.1-hiera-large",
            revision="665f8e2ad61cf5f53d65644ff27c8ee525124610",
            files=("config.json", "model.safetensors", "preprocessor_config.json", "processor_config.json"),
            gigabytes=0.9,
        ),
    ),
    "sam3": (
        Weights(
            repo="facebook/sam3",
            revision="3c879f39826c281e95690f02c7821c4de09afae7",
            files=(
                "config.json",
                "merges.txt",
                "model.safetensors",
                "processor_config.json",
                "special_tokens_map.json",
                "tokenizer.json",
                "tokenizer_config.json",
                "vocab.json",
            ),
            gigabytes=3.4,
        ),
    ),
    "clipseg": (
        Weights(
            repo="CIDAS/clipseg-rd64-refined",
            revision="999e0328d9e10b484360c477313983f9afdd7050",
            files=(
                "config.json",
                "merges.txt",
                "model.safetensors",
                "preprocessor_config.json",
                "special_tokens_map.json",
                "tokenizer_config.json",
                "vocab.json",
            ),
            gigabytes=0.6,
        ),
    ),
}

#: Name -> the settings of our grounders with their defaults, each a threshold between 0 and 1.
THRESHOLDS: dict[str, dict[str, float]] = {
    "tinyworld": {},
    "grounding-dino+sam2": {"box_threshold": 0.25, "text_threshold": 0.25},  # protocol §4
    "sam3": {"threshold": 0.5, "mask_threshold": 0.5},
    "clipseg": {"threshold": 0.4},
    "everything": {},
}

#: Name -> the height and width in pixels of the images that it reads, where it reads no others.
GROUNDER_PIXELS = {"tinyworld": 64}


def grounder_settings(name: str, given: Mapping[str, object]) -> dict[str, object]:
    """Returns the whole settings of a grounder, without loading it: those given, the defaults of the others, its
    models.

    Those of a grounder that is not ours are returned as given. Raises `UserError` for an unknown setting of ours, and
    for a value that is no threshold.
    """
    if name not in THRESHOLDS:
        return dict(given)
    known = THRESHOLDS[name]
    for setting, value in given.items():
        if setting not in known:
            raise UserError(
                f"the grounder {name!r} has no setting {setting!r}{did_you_mean(setting, known)}",
                remedy=f"its settings are {', '.join(known)}" if known else "it has no settings: leave them out",
            )
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
            raise UserError(f"{name}: {setting} is {value!r}", remedy="give a number from 0 to 1")
    thresholds = {setting: float(given.get(setting, default)) for setting, default in known.items()}
    models = [f"{weights.repo}@{weights.revision}" for weights in GROUNDER_WEIGHTS.get(name, ())]
    return thresholds | ({"models": models} if models else {})


def refuse_size(name: str, size: tuple[int, int], what: str) -> None:
    """Raises `UserError` where a grounder of ours cannot read images of (height, width) pixels. what: makes the images,
    in that sentence."""
    only = GROUNDER_PIXELS.get(name)
    if only and size != (only, only):
        raise UserError(
            f"{what} makes pictures of {size[0]} x {size[1]} px, and the grounder {name!r} reads {only} x {only} px"
            " alone",
            remedy="give the backbone another height and width, or another grounder (`riebench ls grounders`)",
        )
