"""Training of sparse autoencoders on a Ray cluster: a group of them on each GPU, or each CPU."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from riebench.core.errors import UserError
from riebench.core.files import read_json, write_json
from riebench.core.progress import Progress
from riebench.core.ray_cluster import Cluster, Terms
from riebench.core.ray_pool import TRIES
from sae_models.architectures import Architecture
from sae_models.jumprelu import JumpReLUSAE
from sae_models.topk import TopKSAE
from sae_models.trainer import train
from sae_models.training_config import TrainConfig
from sae_models.training_state import saved_step, stacks_of

GROUPS_FILE = "groups.json"


class TrainWorker:
    """A training in a process of its own, which says how far it is while it trains."""

    def __init__(self) -> None:
        self._reports: SimpleQueue = SimpleQueue()
        self._numbers: dict[str, float] = {}

    def train(
        self,
        terms: Terms,
        make_batches: bytes,
        architectures: Sequence[Architecture],
        config: TrainConfig,
        options: Mapping[str, Any],
    ) -> tuple[list[TopKSAE | JumpReLUSAE], dict[str, float]]:
        """Returns what `sae_models.train` returns, on the CPU, and the numbers of its last report.

        make_batches: pickled, since what it names may be found only by the paths of the terms. Raises `UserError` as
        `Terms.settle` does.
        """
        from ray import cloudpickle

        device = terms.settle()
        batches = cloudpickle.loads(make_batches)(device)
        trackers = (*options["trackers"], self._hear)
        saes = train(batches, architectures, config, **{**options, "trackers": trackers})
        return [sae.cpu() for sae in saes], self._numbers

    def report(self) -> tuple[int, dict[str, float]]:
        """Returns the step and the numbers of the next report, for which it waits."""
        return self._reports.get()

    def _hear(self, step: int, numbers: Mapping[str, float]) -> None:
        self._numbers = {**numbers}
        self._reports.put((step, self._numbers))


def train_on_cluster(
    make_batches: Callable[[torch.device], Iterator[Tensor]],
    architectures: Sequence[Architecture],
    config: TrainConfig,
    *,
    cluster: Cluster,
    groups: int | None = None,
    folder: Path | None = None,
    checkpoint_every: int = 1_000,
    trackers: Sequence[str] = (),
) -> list[TopKSAE | JumpReLUSAE]:
    """Returns what `sae_models.train` makes of all architectures, on the CPU, in the order given: groups of them are
    trained at the same time, each by a worker of the cluster.

    make_batches: called in each worker with its device; the same rows must come of it everywhere. It goes there by
    pickle. groups: how many, at most one for each architecture; by default as many as `folder` has, or as the cluster
    has room for. Those that find no place wait until another has finished. Stacks, of those that differ by the seed
    alone, stay together where there are as many as groups, and the result is then that of one process to the bit (on a
    CPU, with as many threads); stacks that are split round otherwise.

    With a `folder`, which all machines must see, group n trains in `group-n`, and goes on from there: when the same
    call is made again, and in another worker where its own dies. Without one it then begins anew. trackers: names as
    `train` takes them; each group is a run of its own.

    Raises `UserError` as `train` does, for a folder of another number of groups or other architectures, where one group
    has cost three workers, and where no node is left that could train; what was saved stays.
    """
    if not architectures:
        raise UserError("there is no architecture to train", remedy="give at least one")
    if groups is not None and groups < 1:
        raise UserError(f"there are no {groups} groups", remedy="give a whole number of at least 1")
    folder = None if folder is None else Path(folder).absolute()
    members = _groups_in(folder, architectures, groups, cluster.slots())
    trained = [_Group(number, places, folder and folder / f"group-{number}") for number, places in enumerate(members)]
    maker, terms = cluster.ray.cloudpickle.dumps(make_batches), cluster.terms()

    def begin(group: _Group) -> Any:
        options = {"folder": group.folder, "checkpoint_every": checkpoint_every, "trackers": tuple(trackers)}
        group.worker = cluster.hire(TrainWorker, max_concurrency=2)
        asked = [architectures[place] for place in group.places]
        return group.worker.train.remote(terms, maker, asked, config, options)

    try:
        found = _follow(cluster, trained, begin, config.steps)
    finally:
        for group in trained:
            if group.worker is not None:
                cluster.ray.kill(group.worker)
    return [found[place] for place in range(len(architectures))]


@dataclass
class _Group:
    """Some of the architectures, and how far their training is."""

    number: int
    places: list[int]
    """Of its architectures in the list of all."""
    folder: Path | None
    worker: Any = None
    lost: int = 0
    """How many workers it has cost."""
    done: int = 0
    """Steps."""
    numbers: dict[str, float] = field(default_factory=dict)

    def saved(self) -> int:
        """Returns the step that the training would go on from."""
        return saved_step(self.folder) if self.folder else 0


def group_by_cost(architectures: Sequence[Architecture], number: int) -> list[list[int]]:
    """Returns the places in the list of each group's architectures, the same for the same list and number.

    The costliest stack (width x features) goes first, always to the group that costs least so far. Stacks are split
    where there are fewer of them than groups.
    """

    def cost(places: Sequence[int]) -> int:
        return sum(architectures[place].width * architectures[place].num_features for place in places)

    stacks = stacks_of(architectures)
    while len(stacks) < min(number, len(architectures)):
        largest = max((stack for stack in stacks if len(stack) > 1), key=cost)
        half = len(largest) // 2
        place = stacks.index(largest)
        stacks[place : place + 1] = [largest[:half], largest[half:]]
    groups: list[list[int]] = [[] for _ in range(min(number, len(stacks)))]
    for stack in sorted(stacks, key=cost, reverse=True):
        min(groups, key=cost).extend(stack)
    return [sorted(group) for group in groups]


def _groups_in(
    folder: Path | None, architectures: Sequence[Architecture], asked: int | None, slots: int
) -> list[list[int]]:
    """Returns the groups of a training in the folder, which is marked with them."""
    path = folder and folder / GROUPS_FILE
    if path is None or not path.exists():
        members = group_by_cost(architectures, asked or slots)
        if path is not None:
            write_json(path, {"groups": members})
        return members
    found = read_json(path, "the list of groups").get("groups", [])
    if asked is not None and min(asked, len(architectures)) != len(found):
        raise UserError(
            f"{folder} holds a training in {len(found)} groups, not {asked}",
            remedy=f"go on with {len(found)}, which wait for one another where there are fewer GPUs; "
            "or take another folder",
        )
    if found != group_by_cost(architectures, max(1, len(found))):
        raise UserError(f"{folder} holds a training of other architectures", remedy="take another folder")
    return found


def _follow(cluster: Cluster, groups: Sequence[_Group], begin: Callable[[_Group], Any], steps: int) -> dict:
    """Returns place -> SAE, when all have come. One line sums up the steps of all groups and their last numbers. A
    worker that has finished goes, to make room for one that waits; a group whose worker dies begins in another."""
    training, reporting, found = {}, {}, {}

    def start(group: _Group) -> None:
        group.done = group.saved()
        training[begin(group)] = group
        reporting[group.worker.report.remote()] = group

    def stop(group: _Group) -> None:
        for calls in (training, reporting):
            for call in [call for call, other in calls.items() if other is group]:
                del calls[call]
        cluster.ray.kill(group.worker)
        group.worker = None

    for group in groups:
        start(group)
    label = f"training {sum(len(group.places) for group in groups)} SAEs in {len(groups)} groups"
    with Progress(label, steps * len(groups), sum(group.done for group in groups)) as progress:
        while training:
            call = cluster.wait([*training, *reporting])
            group = (training if call in training else reporting)[call]
            try:
                answer = cluster.answer(call)
            except cluster.deaths as error:
                _count_death(group, groups, error)
                stop(group)
                start(group)
            else:
                if call in training:
                    saes, group.numbers = answer
                    found |= zip(group.places, saes, strict=True)
                    group.done = steps
                    stop(group)
                else:
                    del reporting[call]
                    step, group.numbers = answer
                    if step == steps:
                        continue  # the SAEs follow
                    group.done = step
                    reporting[group.worker.report.remote()] = group
            progress.update(sum(group.done for group in groups), _note([group.numbers for group in groups]))
    return found


def _count_death(group: _Group, groups: Sequence[_Group], error: Exception) -> None:
    """Notes that the worker of a group died, and says it on stderr. Raises `UserError` where that was the last it may
    cost."""
    group.lost += 1
    if group.lost < TRIES:
        told = f"the worker of group {group.number} died; another one goes on at step {group.saved()}"
        print(f"riebench: {told}", file=sys.stderr, flush=True)
        return
    saes = ", ".join(map(str, group.places))
    kept, remedy = "nothing was kept", "look at Ray's logs, and train in a folder"
    if group.folder is not None:
        saved = ", ".join(f"{each.folder.name} up to step {each.saved()}" for each in groups)
        kept = f"kept in {group.folder.parent} are {saved}"
        remedy = "look at Ray's logs; the same call with the same folder goes on from there"
    raise UserError(f"{TRIES} workers of group {group.number} died (SAE {saes}); {kept}", remedy=remedy) from error


def _note(numbers: Sequence[Mapping[str, float]]) -> str:
    """Returns the means over the autoencoders heard of."""
    heard = [item for each in numbers for item in each.items()]
    if not heard:
        return ""
    explained, l0, dead = (
        fmean(value for key, value in heard if key.startswith(f"{name}/")) for name in ("ev", "l0", "dead")
    )
    return f"mean EV {explained:.3f}, L0 {l0:.1f}, dead {dead:.1%}"
