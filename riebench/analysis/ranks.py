"""Methods are ranked on the same cases, with intervals that say how far the edits decide the ranks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Generic, Protocol, TypeVar

import numpy as np
import pandas as pd

from riebench.analysis.statistics import Interval, bootstrap_intervals, bootstrap_weights, edit_means
from riebench.core.errors import UserError
from riebench.core.scores import Score

ALL = "all"
TIE = 1e-12  # means this near share a rank


class Ranked(Protocol):
    """Anything that can be ranked, as an `Entry` of the leaderboard."""

    @property
    def name(self) -> str: ...

    @property
    def backbone(self) -> str: ...

    @property
    def mode(self) -> str: ...

    @property
    def metrics(self) -> dict[str, Score]: ...

    @property
    def values(self) -> pd.DataFrame:
        """Returns rows (category, edit, seed) of its valid cases, a column for each metric."""
        ...


T = TypeVar("T", bound=Ranked)


@dataclass(frozen=True)
class Rank(Generic[T]):
    """An entry's place. `rank` is one more than the number of entries with a better mean, so equals share it."""

    entry: T
    value: Interval
    """The metric's mean over edits."""
    rank: int
    rank_low: int
    """The best rank in the 95 % interval."""
    rank_high: int
    edits: int
    cases: int


def rank_entries(
    entries: Sequence[T], metric: str, category: str = ALL, *, resamples: int = 10_000, seed: int = 0
) -> list[Rank[T]]:
    """Returns entries of one backbone, ranked by the mean of a metric in its direction, best first.

    category: one of the nine, or "all". An entry that has the metric on no case there is not ranked; the others are
    ranked on the cases on which all of them have it, and none is where one or another lacks it on every case. The seeds
    of an edit are averaged, and edits are resampled, the same for all entries. Raises `UserError` where the entries are
    not alike (backbone, mode, or what the metric is computed with), where the metric has no direction, and where no
    case is common to all.
    """
    have = [entry for entry in entries if metric in entry.metrics]
    if not have:
        return []
    better = _alike(have, metric).better
    if better == "neither":
        raise UserError(f"{metric} has no direction to rank by", remedy="choose one that is better higher or lower")
    columns = [(entry, _column(entry, metric, category)) for entry in have]
    ranked = [entry for entry, column in columns if len(column)]
    if not ranked:
        return []
    table = pd.concat([column for _, column in columns if len(column)], axis=1, join="inner")
    if table.empty:
        if set.intersection(*(_cases(entry, category) for entry in ranked)):
            return []  # entries of the same cases, on each of which the metric is withheld for one or another
        raise UserError(
            f"no case of {category!r} has {metric} under all of {', '.join(entry.name for entry in ranked)}",
            remedy="rank entries of the same edits and seeds",
        )
    values_ek = edit_means(table).to_numpy()
    weights_re = _weights(len(values_ek), resamples, seed)
    low, high = rank_intervals(values_ek, weights_re, higher_is_better=better == "higher")
    rank = ranks_of(values_ek.mean(axis=0)[None], higher_is_better=better == "higher")[0]
    found = [
        Rank(entry, value, int(rank[i]), int(low[i]), int(high[i]), len(values_ek), len(table))
        for i, (entry, value) in enumerate(zip(ranked, bootstrap_intervals(values_ek, weights_re), strict=True))
    ]
    return sorted(found, key=lambda one: (one.rank, one.rank_low, one.rank_high, one.entry.name))


def rank_intervals(
    values_ek: np.ndarray, weights_re: np.ndarray, *, higher_is_better: bool, level: float = 0.95
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the lowest and highest rank of each column, int `[columns]` twice: the percentile interval over resamples
    of edits.

    values_ek: `[edits, columns]`; weights_re: of `bootstrap_weights`. Each holds its column's rank alone, not all
    at once, and where means are near each other it may hold it less often than `level` says: Mogstad, Romano, Shaikh
    and Wilhelm, "Inference for Ranks with Applications to Mobility across Neighbourhoods and Academic Achievement
    across Countries", Review of Economic Studies, 2024.
    """
    ranks_rk = ranks_of(weights_re @ values_ek, higher_is_better=higher_is_better)
    tail = (1 - level) / 2
    low, high = np.quantile(ranks_rk, [tail, 1 - tail], axis=0, method="inverted_cdf")
    return low.astype(int), high.astype(int)


def ranks_of(means_rk: np.ndarray, *, higher_is_better: bool) -> np.ndarray:
    """Returns the rank of each column in each row, int `[rows, columns]`: one more than the number of columns that are
    better."""
    signed_rk = means_rk if higher_is_better else -means_rk
    better_rk = [(signed_rk > column[:, None] + TIE).sum(axis=1) for column in signed_rk.T]
    return 1 + np.stack(better_rk, axis=1)


def _alike(entries: Sequence[Ranked], metric: str) -> Score:
    """Returns what all say of the metric. Raises `UserError` where they differ in what decides its values."""
    first = entries[0]
    for other in entries[1:]:
        one, two = first.metrics[metric], other.metrics[metric]
        for respect, here, there in (
            ("backbone", first.backbone, other.backbone),
            ("mode", first.mode, other.mode),
            (f"direction of {metric}", one.better, two.better),
            (f"network of {metric}", one.network, two.network),
            (f"weights of {metric}", one.weights_sha256, two.weights_sha256),
            (f"preprocessing of {metric}", one.preprocessing, two.preprocessing),
        ):
            if here != there:
                raise UserError(
                    f"entries {first.name!r} and {other.name!r} are not alike: {respect}: {here!r} and {there!r}",
                    remedy="rank them apart, or submit one of them again",
                )
    return first.metrics[metric]


def _column(entry: Ranked, metric: str, category: str) -> pd.Series:
    values = entry.values[metric]
    if category != ALL:
        at = values.index.names.index("category")
        values = values[values.index.codes[at] == values.index.levels[at].get_indexer([category])[0]]
    return values.dropna()


def _cases(entry: Ranked, category: str) -> set[tuple]:
    """Returns the cases of an entry in a category, whatever metrics they have."""
    index = entry.values.index
    return set(index if category == ALL else index[index.get_level_values("category") == category])


@lru_cache(maxsize=16)
def _weights(num_edits: int, resamples: int, seed: int) -> np.ndarray:
    return bootstrap_weights(num_edits, resamples, np.random.default_rng(seed))
