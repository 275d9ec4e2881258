"""What a run does on a Ray cluster: an engine, or a scorer, stays loaded on each GPU, or each CPU, and work is streamed
to it."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

from riebench.backbones.table import Backbone
from riebench.core.errors import UserError
from riebench.core.precision import set_tf32
from riebench.core.ray_cluster import Cluster, Terms
from riebench.core.ray_pool import Job, Pool
from riebench.methods.modes import Mode
from riebench.metrics.versions import judge_version
from riebench.runs.engine import Engine, open_engine
from riebench.runs.plan import Task
from riebench.runs.scoring import Scorer
from riebench.runs.store import Batch


class Worker:
    """An engine that stays loaded, in a process of its own."""

    _engine: Engine

    def load(self, terms: Terms, backbone: Backbone, options: dict, scoring: str) -> None:
        """Opens the engine; makes nothing yet.

        options: of `open_engine`. scoring: the version of what scores. Raises `UserError` as `Terms.settle` does, where
        the metrics here are others, and where something is missing.
        """
        device, setup = terms.settle(), options["setup"]
        _check_metrics(scoring, setup.metric_names(backbone.judges), backbone.judges, setup.keeps_marks)
        self._engine = open_engine(backbone, device.type, **options).load()

    def work(self, tasks: Sequence[Task], scoring: str) -> list[Batch]:
        """Returns what `Engine.work` yields."""
        return list(self._engine.work([tasks], scoring))


def work_on_cluster(
    groups: Iterable[Sequence[Task]], scoring: str, backbone: Backbone, cluster: Cluster, options: dict
) -> Iterator[Batch]:
    """Yields what `Engine.work` makes of the groups, which are taken from the iterable as workers come free, in the
    order in which it is made.

    options: of `open_engine`. At most one worker is started for each group; a group whose worker dies is given to
    another. Raises `UserError` as `Pool.work` does.
    """
    jobs = (Job(f"the cases from edit {group[0].edit.id!r} on", (group, scoring)) for group in groups)
    with Pool(cluster, Worker, (backbone, options, scoring)) as pool:
        for _, batches in pool.work(jobs):
            yield from batches


class Scorable(Protocol):
    """Results that are scored together."""

    def items(self) -> list:
        """Returns what `Scorer.score` takes."""
        ...


class ScoreWorker:
    """A scorer that stays loaded, in a process of its own."""

    _scorer: Scorer

    def load(self, terms: Terms, family: str, mode: Mode, names: Sequence[str], scoring: str) -> None:
        """Loads what scores as a mode does. Raises `UserError` as `Terms.settle` does, where the metrics here are
        others, and where weights are missing."""
        device = terms.settle()
        _check_metrics(scoring, names, family, mode.keeps_marks)
        set_tf32(device.type, products=mode.tf32_products)
        self._scorer = Scorer(family, device, keep_marks=mode.keeps_marks, names=names)

    def work(self, part: Scorable) -> list[dict[str, float]]:
        """Returns metric -> value of each result of the part."""
        return self._scorer.score(part.items())


def score_on_cluster(
    parts: Iterable[Scorable], cluster: Cluster, family: str, mode: Mode, names: Sequence[str], scoring: str
) -> Iterator[tuple[int, list[dict[str, float]]]]:
    """Yields (number of the part, its scores as `Scorer.score` returns them) as they come; parts are taken from the
    iterable as workers come free. scoring: the version of what scores. Raises `UserError` as `Pool.work` does."""
    jobs = (Job(f"part {number + 1} of the results", (part,), number) for number, part in enumerate(parts))
    with Pool(cluster, ScoreWorker, (family, mode, tuple(names), scoring)) as pool:
        for job, found in pool.work(jobs):
            yield job.number, found


def _check_metrics(scoring: str, names: Sequence[str], family: str, keep_marks: bool) -> None:
    """Raises `UserError` where the metrics on this machine are not those of the version given."""
    if scoring != judge_version(names, family, keep_marks=keep_marks):
        raise UserError(
            f"the metrics on {platform.node()}, or the weights that they use, are not those of this command",
            remedy="install the same versions everywhere, and fetch the same weights",
        )
