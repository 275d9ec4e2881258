"""Metrics by their names: loaded, or described without being loaded. Imports neither torch nor pandas until then."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

from riebench.core.errors import UserError
from riebench.metrics.base import Metric
from riebench.metrics.models import ScoringModels
from riebench.metrics.networks.base import BATCH_SIZE, Description, Network
from riebench.metrics.table import METRICS, check_names, split_name

if TYPE_CHECKING:
    import torch

    from riebench.core.scores import Score


def scorers(
    names: Sequence[str],
    backbone_family: str = "tinyworld",
    device: torch.device | str = "cpu",
    *,
    keep_marks: bool = False,
    batch_size: int = BATCH_SIZE,
) -> list[Metric]:
    """Returns the metrics of those names, loaded, sharing their networks. `keep_marks` leaves prompts their `[ ]`
    (reference mode). batch_size: how many images or prompts a network reads at once, always.

    Raises `UserError` as `check_names` does, for an unknown family, and where weights are missing.
    """
    metrics = _build(names, backbone_family, device, keep_marks, batch_size)
    for metric in metrics:
        if hasattr(metric, "load"):
            metric.load()
    return metrics


def describe(names: Sequence[str], family: str, *, keep_marks: bool = False) -> tuple[Score, ...]:
    """Returns what a frame says of the metrics of those names on a family's pictures
    (`frames.describe_scores`).

    Loads no network: files of weights are hashed, once a process; those that are not on this machine have the hash "".
    Raises `UserError` as `check_names` does.
    """
    return tuple(_described(metric) for metric in _build(names, family, "cpu", keep_marks))


def networks(names: Sequence[str], family: str) -> list[Description]:
    """Returns what is known of each network that the metrics of those names share, without loading or hashing it.
    Raises `UserError` as `check_names` does."""
    return [network.describe() for network in _used(names, family)]


def refuse_size(names: Sequence[str], family: str, size: tuple[int, int], what: str) -> None:
    """Raises `UserError` where a network of the metrics of those names cannot read images of (height, width) pixels,
    and as `check_names` does. what: makes the images, in that sentence. Loads nothing."""
    for network in _used(names, family):
        label, wanted = f"{network.label}, which scores,", ""
        if network.only and size != (network.only, network.only):
            wanted = f"{network.only} x {network.only} px alone"
        elif min(size) < network.smallest:
            wanted = f"at least {network.smallest} x {network.smallest} px"
        if wanted:
            raise UserError(
                f"{what} makes pictures of {size[0]} x {size[1]} px, and {label} reads {wanted}",
                remedy="give the backbone another height and width, or other judges",
            )


def _used(names: Sequence[str], family: str) -> list[Network]:
    """Returns the networks that the metrics of those names share, each once."""
    metrics = _build(names, family, "cpu", keep_marks=False)
    used = {(metric.models.clip_name, key): metric.models for metric in metrics for key in getattr(metric, "uses", ())}
    return [models.network(key) for (_, key), models in used.items()]


def _build(
    names: Sequence[str], family: str, device: torch.device | str, keep_marks: bool, batch_size: int = BATCH_SIZE
) -> list[Metric]:
    """Returns the metrics, not loaded yet; those of one CLIP share it."""
    models = {"": ScoringModels(family, device, keep_marks, batch_size)}
    check_names(names, family)
    metrics = []
    for name in names:
        base, model = split_name(name)
        if model not in models:
            models[model] = ScoringModels(family, device, keep_marks, batch_size, clip_name=model)
        metrics.append(METRICS.get(base)(models[model]))
    return metrics


def _described(metric: Metric) -> Score:
    from riebench.core.scores import SCORE_BY_NAME, Score

    base, model = split_name(metric.name)
    directions: dict[bool | None, Literal["higher", "lower", "neither"]]
    directions = {True: "higher", False: "lower", None: "neither"}
    better = directions[metric.higher_is_better]
    low, high = (float(bound) if np.isfinite(bound) else None for bound in metric.bounds)
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
        bounds=(low, high),
        needs=tuple(getattr(metric, "needs", ())),
        **{name: getattr(metric, name, "") for name in ("source", "network", "weights_sha256", "preprocessing")},
    )
