"""What a run directory holds of what a run is to have: taken, scored again, or made."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from riebench.core.pictures import from_array, read_picture, regions_from_array
from riebench.runs.pictures import Pictures
from riebench.runs.plan import Shared, Task, Wanted
from riebench.runs.scoring import Scorer
from riebench.runs.store import Batch, Store

#: Which results of a run directory are taken and which are made.
CACHE_MODES = {
    "only-missing": "what is there is taken, the rest is made",
    "always": "the same, and what another version of the code made is taken too",
    "never": "nothing that is there is taken: everything is made again",
    "only-cache": "nothing is made: tables and report of what is there, or an error where something is missing",
}
RESCORED = 64  # results that are read and scored together


def find_missing(
    tasks: Sequence[Task], store: Store, cache: str, scoring: str
) -> tuple[list[Task], list[tuple[Task, Wanted]]]:
    """Returns (tasks with only those results that must be generated, which may be none where only a picture that they
    share is gone; results that are there and must only be scored anew)."""
    missing, unscored = [], []
    for task in tasks:
        absent, has_shared = [], _has_shared(task, store, cache)
        for wanted in task.wanted:
            row = _row(wanted, store, cache)
            if row is None or (row["scoring"] != scoring and not has_shared):
                absent.append(wanted)
            elif row["scoring"] != scoring:
                unscored.append((task, wanted))
        if absent or not has_shared:
            missing.append(dataclasses.replace(task, wanted=tuple(absent)))
    return missing, unscored


def with_pictures(task: Task, store: Store, cache: str) -> Task:
    """Returns the task with the pictures that its results share, in their places, where they are all there."""
    if not _has_shared(task, store, cache):
        return task
    original, edited, regions = (
        dataclasses.replace(shared, image=store.row(shared.recipe)["image"]) for shared in task.shared
    )
    return dataclasses.replace(task, original=original, edited=edited, regions=regions, pictures=_pictures(task, store))


def rescored(
    items: Sequence[tuple[Task, Wanted]],
    family: str,
    device: torch.device,
    store: Store,
    scoring: str,
    stop: Callable[[], bool],
    **how: Any,
) -> Iterator[Batch]:
    """Yields the rows of results that are there, with new scores of the same pictures, until `stop` is true.

    how: what else `Scorer` takes.
    """
    scorer = Scorer(family, device, **how) if items else None
    for start in range(0, len(items), RESCORED):
        if stop():
            return
        rows, to_score = {}, []
        for task, wanted in items[start : start + RESCORED]:
            row = store.row(wanted.recipe)
            rows[wanted.recipe] = row | {"scoring": scoring}
            if row["image"]:
                image = from_array(read_picture(store.folder / row["image"]))
                to_score.append((wanted.recipe, (task.edit, _pictures(task, store), image)))
        scores = scorer.score([item for _, item in to_score])
        for (recipe, _), found in zip(to_score, scores, strict=True):
            rows[recipe] |= found
        yield Batch(list(rows.values()), {})


def _row(wanted: Wanted | Shared, store: Store, cache: str) -> dict | None:
    """Returns the row of a result or a shared picture, if it is to be taken."""
    row = store.row(wanted.recipe) if cache != "never" else None
    return row if row and (row["code"] == wanted.code or cache == "always") else None


def _has_shared(task: Task, store: Store, cache: str) -> bool:
    return all(_row(shared, store, cache) for shared in task.shared)


def _pictures(task: Task, store: Store) -> Pictures:
    original, edited, regions = (
        read_picture(store.folder / store.row(shared.recipe)["image"]) for shared in task.shared
    )
    return Pictures(from_array(original), from_array(edited), regions_from_array(regions))
