"""Training of sparse autoencoders on a Ray cluster: a group of them on each GPU, or each CPU."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from queue import SimpleQueue
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from riebench.core.errors import UserError
from riebench.core.files import read_json, write_json
from riebench.core.progress import Progress
from riebench.core.ray_cluster import ray_cluster
from riebench.core.versions import installed_sources
from sae_models.architectures import Architecture
from sae_models.jumprelu import JumpReLUSAE
from sae_models.topk import TopKSAE
from sae_models.trainer import train
from sae_models.training_config import TrainConfig
from sae_models.training_state import saved_step, stacks_of

GROUPS_FILE = "groups.json"


class Worker:
    """A training in a process of its own, which says how far it is while it trains."""

    def __init__(self) -> None:
        self._reports: SimpleQueue = SimpleQueue()
        self._numbers: dict[str, float] = {}

    def train(
        self,
        make_batches: bytes,
        architectures: Sequence[Architecture],
        config: TrainConfig,
        device: str,
        version: str,
        paths: Sequence[str],
        options: Mapping[str, Any],
    ) -> tuple[list[TopKSAE | JumpReLUSAE], dict[str, float]]:
        """Returns what `sae_models.train` returns, on the CPU, and the numbers of its last report.

        make_batches: pickled, since what it names is found only with `paths`. version: of the code; raises `UserError`
        where that here is another.
        """
        from ray import cloudpickle

        sys.path += [path for path in paths if path not in sys.path]
        if version != installed_sources():
            raise UserError(
                f"the code in {Path(__file__).parents[1]} on {platform.node()} is not that of the training",
                remedy="install the same versions everywhere, and start where no other copy lies",
            )
        if device == "cpu":
            torch.set_num_threads(1)
        batches = cloudpickle.loads(make_batches)(torch.device(device))
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
    device: str,
    groups: int | None = None,
    folder: Path | None = None,
    checkpoint_every: int = 1_000,
    trackers: Sequence[str] = (),
    address: str | None = None,
) -> list[TopKSAE | JumpReLUSAE]:
    """Returns what `sae_models.train` makes of all architectures, on the CPU, in the order given: groups of them are
    trained at the same time, each by a worker with one GPU where `device` is "cuda", else with one CPU and one thread.

    make_batches: called in each worker with its device; the same rows must come of it everywhere. It goes there by
    pickle. groups: how many, at most one for each architecture; by default as many as `folder` has, or as the cluster
    has GPUs or CPUs. Those that find no place wait until another has finished. Stacks, of those that differ by the seed
    alone, stay together where there are as many as groups, and the result is then that of one process to the bit (on a
    CPU, with as many threads); stacks that are split round otherwise.

    With a `folder`, which all machines must see, group n trains in `group-n`, and goes on from there. trackers: names
    as `train` takes them; each group is a run of its own. address: as `ray_cluster` takes it.

    Raises `UserError` as `train` does, where Ray, the cluster or a GPU is missing, for a folder of another number of
    groups or other architectures, and where a worker dies; what was saved stays.
    """
    if not architectures:
        raise UserError("there is no architecture to train", remedy="give at least one")
    if groups is not None and groups < 1:
        raise UserError(f"there are no {groups} groups", remedy="give a whole number of at least 1")
    folder = None if folder is None else Path(folder).absolute()
    with ray_cluster(address, device) as (ray, slots, resources):
        members = _groups_in(folder, architectures, groups, slots)
        folders = [folder and folder / f"group-{number}" for number in range(len(members))]
        hire = ray.remote(**resources, max_concurrency=2)(Worker).remote
        shared = device, installed_sources(), [os.path.abspath(path) for path in sys.path]
        maker = ray.cloudpickle.dumps(make_batches)
        workers, calls = [], []
        try:
            for places, where in zip(members, folders, strict=True):
                options = {"folder": where, "checkpoint_every": checkpoint_every, "trackers": tuple(trackers)}
                workers.append(hire())
                group = [architectures[place] for place in places]
                calls.append(workers[-1].train.remote(maker, group, config, *shared, options))
            found = _follow(ray, workers, calls, folders, members, config.steps)
        finally:
            for worker in workers:
                ray.kill(worker)
    return [found[place] for place in range(len(architectures))]


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


def _follow(ray, workers: list, calls: list, folders: list[Path | None], members: list[list[int]], steps: int) -> dict:
    """Returns place -> SAE, when all have come. One line sums up the steps of all groups and their last numbers. A
    worker that has finished goes, to make room for one that waits."""
    done = [saved_step(where) if where else 0 for where in folders]
    numbers: dict[int, dict[str, float]] = {}
    training = {call: group for group, call in enumerate(calls)}
    reporting = {worker.report.remote(): group for group, worker in enumerate(workers)}
    found = {}
    label = f"training {sum(map(len, members))} SAEs in {len(members)} groups"
    with Progress(label, total=steps * len(members), done=sum(done)) as progress:
        while training:
            (call,), _ = ray.wait([*training, *reporting], num_returns=1)
            if call in training:
                group = training.pop(call)
                saes, numbers[group] = _answer(ray, call, group, folders, members)
                found |= zip(members[group], saes, strict=True)
                done[group] = steps
                reporting = {call: other for call, other in reporting.items() if other != group}
                ray.kill(workers[group])
            else:
                group = reporting.pop(call)
                step, numbers[group] = _answer(ray, call, group, folders, members)
                if step == steps:
                    continue  # the SAEs follow
                done[group] = step
                reporting[workers[group].report.remote()] = group
            progress.update(sum(done), _note(numbers))
    return found


def _answer(ray, call, group: int, folders: list[Path | None], members: list[list[int]]) -> Any:
    """Returns what a call of a worker returns. Raises what the worker raised, and `UserError` where it died."""
    try:
        return ray.get(call)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error
    except (ray.exceptions.RayActorError, ray.exceptions.OutOfMemoryError, ray.exceptions.ObjectLostError) as error:
        saes = ", ".join(map(str, members[group]))
        kept, remedy = "nothing was kept", "look at Ray's logs, and train in a folder"
        if folders[group] is not None:
            steps = ", ".join(f"{where.name} up to step {saved_step(where)}" for where in folders)
            kept = f"kept in {folders[group].parent} are {steps}"
            remedy = "look at Ray's logs; the same call with the same folder goes on from there"
        raise UserError(f"the worker of group {group} died (SAE {saes}); {kept}", remedy=remedy) from error


def _note(numbers: dict[int, dict[str, float]]) -> str:
    """Returns the means over the autoencoders heard of."""
    heard = [item for each in numbers.values() for item in each.items()]
    if not heard:
        return ""
    explained, l0, dead = (
        fmean(value for key, value in heard if key.startswith(f"{name}/")) for name in ("ev", "l0", "dead")
    )
    return f"mean EV {explained:.3f}, L0 {l0:.1f}, dead {dead:.1%}"
