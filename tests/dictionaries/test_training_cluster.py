"""Training on a Ray cluster of two workers: what one process trains, whatever becomes of the workers."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import signal

import pytest
import torch
from ray_nodes import needs_ray

from riebench.core.errors import UserError
from riebench.core.threads import threads
from riebench.dictionaries.ray import group_by_cost, train_on_cluster
from sae_models.architectures import L1, Architecture, AuxK, BatchTopK, JumpReLU, Restart, TopK
from sae_models.batches import shuffled_batches
from sae_models.trainer import TrainConfig, train

CONFIG = TrainConfig(steps=60, lr=2e-3, report_every=10)
SEEDS = [Architecture(16, 48, TopK(3), revival=AuxK(8, dead_after=64), seed=seed) for seed in range(3)]
MANY = [
    SEEDS[0],
    Architecture(16, 40, BatchTopK(3)),
    SEEDS[1],
    Architecture(16, 32, JumpReLU(1e-3), revival=Restart(200)),
    Architecture(16, 32, L1(1e-2)),
    SEEDS[2],
]


def make_batches(device):
    rows_nd = torch.randn(4096, 16, generator=torch.Generator().manual_seed(0)) * torch.linspace(1, 3, 16) + 1
    return shuffled_batches(rows_nd.to(device), 1024)


@pytest.fixture(scope="module")
def alone():
    with threads(1):
        return train(make_batches("cpu"), MANY, CONFIG)


def same(first, second):
    return len(first) == len(second) and all(
        type(a) is type(b) and all(torch.equal(a.state_dict()[name], value) for name, value in b.state_dict().items())
        for a, b in zip(first, second, strict=True)
    )


# groups


def cost(architectures):
    return sum(each.width * each.num_features for each in architectures)


def test_groups_hold_every_architecture_once_with_stacks_whole_and_costs_even():
    for number in (1, 2, 3, 4):
        groups = group_by_cost(MANY, number)
        assert len(groups) == number and sorted(itertools.chain(*groups)) == list(range(6))
        assert sum({0, 2, 5} <= set(group) for group in groups) == 1, "those that differ by the seed alone"
    costs = [cost(MANY[place] for place in group) for group in group_by_cost(MANY, 2)]
    assert max(costs) == 16 * 3 * 48, "no division that keeps the stack whole is more even"


def test_a_stack_is_split_where_there_are_more_groups_than_stacks():
    assert sorted(map(len, group_by_cost(SEEDS, 2))) == [1, 2]
    assert group_by_cost(SEEDS, 8) == [[0], [1], [2]]


def test_groups_of_real_sizes_are_balanced():
    grid = [Architecture(1280, 1280 * x, TopK(k)) for x in (4, 8, 16) for k in (10, 20, 40, 80, 160)]
    costs = [cost(grid[place] for place in group) for group in group_by_cost(grid, 4)]
    assert max(costs) <= 1.34 * cost(grid) / 4  # (Graham 1969: longest first is within 4/3 of the best)
    assert group_by_cost(grid, 4) == group_by_cost(list(grid), 4)


# training


@pytest.mark.process
@needs_ray
@pytest.mark.parametrize("groups", [None, 3])
def test_groups_make_what_one_process_makes(alone, cluster, tmp_path, groups, capsys):
    found = train_on_cluster(make_batches, MANY, CONFIG, cluster=cluster, groups=groups, folder=tmp_path)
    assert same(found, alone)
    names = sorted(path.name for path in tmp_path.glob("group-*"))
    assert names == [f"group-{n}" for n in range(groups or 2)], "as many as the cluster has CPUs"
    for name in names:
        assert (tmp_path / name / "log.jsonl").exists() and (tmp_path / name / "curves.svg").exists()
    said = capsys.readouterr().err.splitlines()
    steps = 60 * len(names)
    assert [line for line in said if f"training 6 SAEs in {len(names)} groups: {steps}/{steps} steps" in line] == [
        said[-1]
    ]
    last = [json.loads((tmp_path / name / "log.jsonl").read_text().splitlines()[-1])["saes"] for name in names]
    mean = sum(sae["ev"] for saes in last for sae in saes) / 6
    assert f"mean EV {mean:.3f}" in said[-1]


def deadly(folder, deaths, *, falls=False):
    """Batches whose process is killed at step 45, when 40 are saved, so often, and then falls with its node at 50."""

    def make(device):  # as one typed in a notebook: nobody can import it
        for step, batch in enumerate(make_batches(device)):
            died = len(list(folder.glob("died-*")))
            if step == 45 and died < deaths:
                (folder / f"died-{died}").touch()
                os.kill(os.getpid(), signal.SIGKILL)
            if step == 50 and falls:
                import ray_nodes

                ray_nodes.fall_here(folder / "fallen")
            yield batch

    return make


@pytest.mark.process
@needs_ray
def test_a_training_goes_on_where_a_worker_dies_and_then_a_node(alone, nodes, cluster, tmp_path, capsys):
    with nodes.one_falls(tmp_path / "fallen"):
        words = dict(cluster=cluster, folder=tmp_path / "training", checkpoint_every=20)
        found = train_on_cluster(deadly(tmp_path, 1, falls=True), MANY, CONFIG, **words)
    assert same(found, alone)
    assert capsys.readouterr().err.count("died; another one goes on at step 40") >= 2


@pytest.mark.process
@needs_ray
def test_a_group_that_costs_three_workers_leaves_what_was_saved_and_goes_on_from_there(alone, cluster, tmp_path):
    make, words = deadly(tmp_path, 3), dict(cluster=cluster, groups=1, folder=tmp_path / "it", checkpoint_every=20)
    said = r"3 workers of group 0 died \(SAE 0, 1, 2, 3, 4, 5\); kept .*it are group-0 up to step 40 -> .*same folder"
    with pytest.raises(UserError, match=said):
        train_on_cluster(make, MANY, CONFIG, **words)
    assert same(train_on_cluster(make, MANY, CONFIG, **words), alone)


@pytest.mark.process
@needs_ray
def test_a_folder_goes_on_with_its_own_groups_alone(alone, cluster, tmp_path):
    train_on_cluster(make_batches, MANY, CONFIG, cluster=cluster, groups=1, folder=tmp_path)
    with pytest.raises(UserError, match="holds a training in 1 groups, not 2 -> go on with 1"):
        train_on_cluster(make_batches, MANY, CONFIG, cluster=cluster, groups=2, folder=tmp_path)
    with pytest.raises(UserError, match="of other architectures -> take another folder"):
        train_on_cluster(make_batches, MANY[:2], CONFIG, cluster=cluster, folder=tmp_path)
    with pytest.raises(UserError, match="group-0.*is of a run with lr=0.002"):
        train_on_cluster(make_batches, MANY, dataclasses.replace(CONFIG, lr=1.0), cluster=cluster, folder=tmp_path)
    assert same(train_on_cluster(make_batches, MANY, CONFIG, cluster=cluster, folder=tmp_path), alone)
    assert [path.name for path in tmp_path.glob("group-*")] == ["group-0"]


@pytest.mark.process
@needs_ray
def test_more_groups_than_architectures_are_one_for_each(cluster, tmp_path):
    config = dataclasses.replace(CONFIG, steps=3)
    for _ in range(2):
        found = train_on_cluster(make_batches, MANY[1:2], config, cluster=cluster, groups=3, folder=tmp_path)
    with threads(1):
        assert same(found, train(make_batches("cpu"), MANY[1:2], config))
    assert [path.name for path in tmp_path.glob("group-*")] == ["group-0"]


@pytest.mark.process
@needs_ray
@pytest.mark.parametrize("error", [UserError("no rows", remedy="harvest some"), KeyError("the power fails")])
def test_errors_of_a_worker_come_out_as_they_are(cluster, error):
    def failing(device):
        raise error

    with pytest.raises(type(error)) as raised:
        train_on_cluster(failing, MANY, CONFIG, cluster=cluster)
    assert type(raised.value) is type(error) and str(raised.value) == str(error)


def test_nothing_to_train_is_refused_before_ray_starts():
    with pytest.raises(UserError, match="no architecture"):
        train_on_cluster(make_batches, [], CONFIG, cluster=None)
    with pytest.raises(UserError, match="no 0 groups"):
        train_on_cluster(make_batches, MANY, CONFIG, cluster=None, groups=0)
