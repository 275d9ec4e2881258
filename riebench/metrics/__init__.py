"""What a result is scored by. Metrics are found by name, share their networks, and return one float a row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from riebench.errors import UserError
from riebench.registry import Registry

if TYPE_CHECKING:
    import torch

    from riebench.edits import Edit
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

    def __post_init__(self) -> None:
        b, channels, h, w = self.intervened.shape
        expected = {"original": (b, channels, h, w), "edited": (b, channels, h, w), "outside": (b, h, w)}
        for name, shape in expected.items():
            found = tuple(getattr(self, name).shape)
            if found != shape:
                raise ValueError(f"{name} is {found}, where the intervened images ask for {shape}")
        if channels != 3 or len(self.edits) != b:
            raise ValueError(f"{b} images of {channels} channels with {len(self.edits)} edits")


class Metric(Protocol):
    """One score. "Better" is nearer to what the name says: `lpips_original` is better the lower it is."""

    name: str
    higher_is_better: bool
    bounds: tuple[float, float]
    summary: str

    def score(self, batch: ScoreBatch) -> np.ndarray:
        """Float64 `[b]`; NaN for a row on which the score is not defined."""
        ...


#: Name -> a function that builds the metric from the networks shared by all.
METRICS: Registry[Callable[[ScoringModels], Metric]] = Registry("metric", "riebench.metrics")
for _name, _target, _summary in (
    ("clip_text_edited", "clip:text_edited", "CLIP cosine of the intervened image with the edited prompt"),
    ("clip_text_original", "clip:text_original", "CLIP cosine of the intervened image with the original prompt"),
    ("clip_image_edited", "clip:image_edited", "CLIP cosine of the intervened image with the edited image"),
    ("clip_image_original", "clip:image_original", "CLIP cosine of the intervened image with the original image"),
    ("clip_directional", "clip:ClipDirectional", "CLIP cosine of the image's change with the change of the prompt"),
    ("lpips_original", "lpips:original", "LPIPS-Alex of the intervened image with the original image"),
    ("lpips_edited", "lpips:edited", "LPIPS-Alex of the intervened image with the edited image"),
    ("lpips_outside", "lpips:LpipsOutside", "LPIPS-Alex with the original image, averaged outside the region"),
    ("oracle_success", "oracle:OracleSuccess", "1 where the oracle reads every edited attribute as wanted, else 0"),
    ("oracle_preservation", "oracle:OraclePreservation", "share of the other attributes that read as in the original"),
):
    METRICS.add(_name, f"riebench.metrics.{_target}", _summary)


#: Family of backbones -> the metrics that only its pictures can be scored with.
ONLY = {"tinyworld": ("oracle_success", "oracle_preservation")}


def metrics_of(family: str) -> tuple[str, ...]:
    """Names of the metrics that can score a family's pictures."""
    others = {name for other, names in ONLY.items() if other != family for name in names}
    return tuple(name for name in METRICS.names() if name not in others)


def scorers(
    names: Sequence[str],
    backbone_family: str = "tinyworld",
    device: torch.device | str = "cpu",
    *,
    keep_marks: bool = False,
) -> list[Metric]:
    """The metrics of those names, sharing their networks. `keep_marks` leaves prompts their `[ ]` (reference mode).

    Raises `UserError` for an unknown name or family, and for a metric that the family does not have.
    """
    from riebench.metrics.models import ScoringModels

    models = ScoringModels(backbone_family, device, keep_marks)
    return [METRICS.get(name)(models) for name in names]


def score_batch(metrics: Sequence[Metric], batch: ScoreBatch) -> dict[str, np.ndarray]:
    """Metric name -> float64 `[b]`. Raises `UserError` naming a metric that returns anything but one number a row."""
    scores = {}
    for metric in metrics:
        values = np.asarray(metric.score(batch))
        if values.shape != (len(batch.edits),) or values.dtype != np.float64:
            raise UserError(
                f"metric {metric.name!r} returned {values.dtype} {list(values.shape)} for {len(batch.edits)} rows",
                remedy="score() returns float64, one number a row",
            )
        scores[metric.name] = values
    return scores
