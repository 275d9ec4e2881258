"""What a result is scored by. Metrics are found by name, share their networks, and return one float a row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from riebench.core.errors import UserError
from riebench.core.registry import Registry

if TYPE_CHECKING:
    import torch

    from riebench.analysis.frames import Score
    from riebench.edits.edit import Edit
    from riebench.metrics.models import ScoringModels


@dataclass(frozen=True)
class ScoreBatch:
    """Results to score, row by row. Raises `ValueError` when the shapes do not agree."""

    intervened: torch.Tensor
    """Intervened images, float `[b, 3, h, w]` in [0, 1]."""
    original: torch.Tensor
    """Original images from the same noise, as above."""
    edited: torch.Tensor
    """Edited images from the same noise, as above."""
    edits: Sequence[Edit]
    """The edit of each row."""
    outside: torch.Tensor
    """Bool `[b, h, w]`, True outside the dilated region."""
    regions: torch.Tensor
    """Bool `[b, 2, h, w]`: the region in the original and in the edited image, as they were found."""

    def __post_init__(self) -> None:
        b, channels, h, w = self.intervened.shape
        images = (b, channels, h, w)
        expected = {"original": images, "edited": images, "outside": (b, h, w), "regions": (b, 2, h, w)}
        for name, shape in expected.items():
            found = tuple(getattr(self, name).shape)
            if found != shape:
                raise ValueError(f"{name} is {found}, where the intervened images ask for {shape}")
        if channels != 3 or len(self.edits) != b:
            raise ValueError(f"{b} images of {channels} channels with {len(self.edits)} edits")


class Metric(Protocol):
    """One score of the intervened image.

    A metric may say more of itself, which is stored with its scores (`riebench.analysis.frames.Score`): `label`,
    `source`, `network`, `weights_sha256`, `preprocessing` (text), `needs` (a tuple of text), and `always`, whether no
    row is NaN. It is described without being used, so it had better load its networks in a method `load()`, which is
    called once before the first `score`.
    """

    name: str
    """The column of its scores."""
    higher_is_better: bool | None
    """None where it depends: an edit may be meant to leave the original prompt, or to keep to it."""
    bounds: tuple[float, float]
    """Least and greatest value; infinite for none."""
    summary: str
    """One line."""

    def score(self, batch: ScoreBatch) -> np.ndarray:
        """Float64 `[b]`; NaN for a row on which the score is not defined. A row does not depend on the others."""
        ...


#: Name -> a function that builds the metric from the networks shared by all.
METRICS: Registry[Callable[[ScoringModels], Metric]] = Registry("metric", "riebench.metrics")
for _name, _target, _summary in (
    ("clip_text_edited", "clip_text:edited", "CLIP cosine of the intervened image with the edited prompt"),
    ("clip_text_original", "clip_text:original", "CLIP cosine of the intervened image with the original prompt"),
    ("clip_image_edited", "clip_image:edited", "CLIP cosine of the intervened image with the edited image"),
    ("clip_image_original", "clip_image:original", "CLIP cosine of the intervened image with the original image"),
    (
        "clip_directional",
        "clip_directional:ClipDirectional",
        "CLIP cosine of the image's change with the change of the prompt",
    ),
    ("clip_region_edited", "clip_region:edited", "CLIP cosine of the edited region's crop with its phrase"),
    ("clip_region_original", "clip_region:original", "CLIP cosine of the original region's crop with its phrase"),
    ("lpips_original", "lpips:original", "LPIPS-Alex of the intervened image with the original image"),
    ("lpips_edited", "lpips:edited", "LPIPS-Alex of the intervened image with the edited image"),
    ("lpips_outside", "lpips:outside", "LPIPS-Alex with the original image, averaged outside the region"),
    ("psnr_outside", "psnr:outside", "PSNR with the original image outside the region, in dB, at most 100"),
    ("ssim_outside", "ssim:outside", "SSIM with the original image, averaged outside the region"),
    ("mse_outside", "mse:outside", "mean squared error to the original image outside the region"),
    (
        "edit_efficiency",
        "efficiency:EditEfficiency",
        "gain in the CLIP cosine with the edited prompt, divided by LPIPS to the original image",
    ),
    ("oracle_success", "oracle:OracleSuccess", "1 where the oracle reads every edited attribute as wanted, else 0"),
    ("oracle_preservation", "oracle:OraclePreservation", "share of the other attributes that read as in the original"),
    ("psnr", "psnr:whole", "PSNR with the original image, in dB, at most 100"),
    ("ssim", "ssim:whole", "SSIM with the original image"),
    ("mse", "mse:whole", "mean squared error to the original image"),
    ("lpips_vgg_original", "lpips:vgg_original", "LPIPS-VGG of the intervened image with the original image"),
    ("lpips_vgg_edited", "lpips:vgg_edited", "LPIPS-VGG of the intervened image with the edited image"),
    ("lpips_vgg_outside", "lpips:vgg_outside", "LPIPS-VGG with the original image, averaged outside the region"),
    (
        "lpips_squeeze_original",
        "lpips:squeeze_original",
        "LPIPS-Squeeze of the intervened image with the original image",
    ),
    ("lpips_squeeze_edited", "lpips:squeeze_edited", "LPIPS-Squeeze of the intervened image with the edited image"),
    (
        "lpips_squeeze_outside",
        "lpips:squeeze_outside",
        "LPIPS-Squeeze with the original image, averaged outside the region",
    ),
    ("siglip2_text_edited", "siglip:text_edited", "SigLIP 2 cosine of the intervened image with the edited prompt"),
    (
        "siglip2_text_original",
        "siglip:text_original",
        "SigLIP 2 cosine of the intervened image with the original prompt",
    ),
    ("siglip2_image_edited", "siglip:image_edited", "SigLIP 2 cosine of the intervened image with the edited image"),
    (
        "siglip2_image_original",
        "siglip:image_original",
        "SigLIP 2 cosine of the intervened image with the original image",
    ),
    (
        "structure_distance",
        "structure:StructureDistance",
        "distance of DINO's key self-similarity to that of the original image",
    ),
):
    METRICS.add(_name, f"riebench.metrics.{_target}", _summary)


#: What every run is scored by: what was published, and what strict mode adds (protocol §7). The others are by name.
DEFAULT = (
    "clip_text_edited",
    "clip_text_original",
    "clip_image_edited",
    "clip_image_original",
    "clip_directional",
    "clip_region_edited",
    "clip_region_original",
    "lpips_original",
    "lpips_edited",
    "lpips_outside",
    "psnr_outside",
    "ssim_outside",
    "mse_outside",
    "edit_efficiency",
)
#: Family of backbones -> the metrics that only its pictures can be scored with, and always are.
ONLY = {"tinyworld": ("oracle_success", "oracle_preservation")}
#: The metrics that take another CLIP of open_clip, as in `clip_text_edited@ViT-B-32/laion2b_s34b_b79k`.
ANY_CLIP = tuple(name for name in DEFAULT if name.startswith("clip_"))
#: How far a score may be beyond its metric's bounds: cosines of float32 unit vectors are 1 but for rounding.
BOUNDS_TOLERANCE = 1e-5


def default_metrics(family: str) -> tuple[str, ...]:
    """Names of the metrics that a run on a family's backbones computes unless it is told otherwise."""
    return DEFAULT + ONLY.get(family, ())


def metrics_of(family: str) -> tuple[str, ...]:
    """Names of the registered metrics that can score a family's pictures."""
    return tuple(name for name in METRICS.names() if name not in _of_others(family))


def split_name(name: str) -> tuple[str, str]:
    """(Name in the registry, "architecture/weights" of the open_clip model that stands behind it; "" for its own)."""
    base, _, model = name.partition("@")
    return base, model


def check_names(names: Sequence[str], family: str) -> None:
    """Raises `UserError` for an unknown or repeated name, a metric that the family does not have, and an open_clip
    model that is unknown or asked of a metric that takes none. Loads nothing."""
    for name in names:
        base, model = split_name(name)
        METRICS.summary(base)
        if names.count(name) > 1:
            raise UserError(f"the metric {name!r} is named twice", remedy="name it once")
        if base in _of_others(family):
            raise UserError(
                f"{name}: the oracle reads tinyworld's pictures, not those of {family}", remedy="leave it out"
            )
        if "@" in name:
            if base not in ANY_CLIP:
                raise UserError(
                    f"the metric {base!r} takes no other CLIP than its own",
                    remedy=f"use one of {', '.join(ANY_CLIP)} before the @",
                )
            from riebench.metrics.openclip import check_model

            check_model(model)


def scorers(
    names: Sequence[str],
    backbone_family: str = "tinyworld",
    device: torch.device | str = "cpu",
    *,
    keep_marks: bool = False,
) -> list[Metric]:
    """The metrics of those names, loaded, sharing their networks. `keep_marks` leaves prompts their `[ ]` (reference
    mode).

    Raises `UserError` as `check_names` does, for an unknown family, and where weights are missing.
    """
    metrics = _build(names, backbone_family, device, keep_marks)
    for metric in metrics:
        if hasattr(metric, "load"):
            metric.load()
    return metrics


def describe(names: Sequence[str], family: str, *, keep_marks: bool = False) -> tuple[Score, ...]:
    """What a frame says of the metrics of those names on a family's pictures (`frames.describe_scores`).

    Loads no network: files of weights are hashed, once a process; those that are not on this machine have the hash "".
    Raises `UserError` as `check_names` does.
    """
    return tuple(_described(metric) for metric in _build(names, family, "cpu", keep_marks))


def score_batch(metrics: Sequence[Metric], batch: ScoreBatch) -> dict[str, np.ndarray]:
    """Metric name -> float64 `[b]`.

    Raises `UserError` naming a metric that returns anything but one number a row, or, with the row's edit, one that is
    infinite or out of its bounds.
    """
    scores = {}
    for metric in metrics:
        values = np.asarray(metric.score(batch))
        if values.shape != (len(batch.edits),) or values.dtype != np.float64:
            raise UserError(
                f"metric {metric.name!r} returned {values.dtype} {list(values.shape)} for {len(batch.edits)} rows",
                remedy="score() returns float64, one number a row",
            )
        low, high = metric.bounds
        wrong = np.isinf(values) | (values < low - BOUNDS_TOLERANCE) | (values > high + BOUNDS_TOLERANCE)
        if wrong.any():
            row = int(wrong.argmax())
            raise UserError(
                f"metric {metric.name!r} returned {values[row]} for {batch.edits[row].id} (row {row}), which is not"
                f" within {low:g} and {high:g}",
                remedy="score() returns NaN where it is not defined; mend it or its bounds",
            )
        scores[metric.name] = values
    return scores


def _of_others(family: str) -> set[str]:
    return {name for other, names in ONLY.items() if other != family for name in names}


def _build(names: Sequence[str], family: str, device: torch.device | str, keep_marks: bool) -> list[Metric]:
    """The metrics, not loaded yet; those of one CLIP share it."""
    from riebench.metrics.models import ScoringModels

    models = {"": ScoringModels(family, device, keep_marks)}
    check_names(names, family)
    metrics = []
    for name in names:
        base, model = split_name(name)
        if model not in models:
            models[model] = ScoringModels(family, device, keep_marks, clip_name=model)
        metrics.append(METRICS.get(base)(models[model]))
    return metrics


def _described(metric: Metric) -> Score:
    from riebench.core.scores import SCORE_BY_NAME, Score

    base, model = split_name(metric.name)
    better = {True: "higher", False: "lower", None: "neither"}[metric.higher_is_better]
    known = SCORE_BY_NAME.get(base)
    words = known or Score(
        base, getattr(metric, "label", base), better, metric.summary, always=getattr(metric, "always", False)
    )
    return Score(
        metric.name,
        f"{words.label} ({model})" if model else words.label,
        words.better,
        words.meaning,
        words.always,
        bounds=tuple(float(bound) if np.isfinite(bound) else None for bound in metric.bounds),
        needs=tuple(getattr(metric, "needs", ())),
        **{name: getattr(metric, name, "") for name in ("source", "network", "weights_sha256", "preprocessing")},
    )
