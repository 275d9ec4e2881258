"""Harvesting on a Ray cluster: the bytes of one machine, whatever becomes of the workers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from ray_nodes import needs_ray

import riebench.dictionaries.harvest as harvest
import riebench.dictionaries.ray_harvest as on_cluster
from riebench.backbones.table import BACKBONES
from riebench.cli import main
from riebench.core.errors import UserError
from riebench.core.threads import threads
from riebench.dictionaries.harvest import harvest_to_store
from riebench.dictionaries.prompts import world_prompts
from riebench.dictionaries.ray_harvest import HarvestWorker, harvest_on_cluster
from sae_models.activation_store import ActivationStore

BACKBONE = BACKBONES.get("tinyworld-turbo@1")
BLOCKS = ("down.2.1", "up.0.0")
PROMPTS = world_prompts(11, seed=8)
OF_TWO = {"shard_bytes": 2 * 64 * 96 * 2}  # prompts a shard; six shards


@pytest.fixture
def alone(of_four, tmp_path, monkeypatch):
    """The store of one process with one thread, in batches of four."""
    monkeypatch.setattr(harvest, "usable_cores", lambda: 1)
    monkeypatch.setattr(harvest, "machine_cores", lambda: 1)
    with threads(1):
        return harvest_to_store(of_four, BLOCKS, PROMPTS, 70, tmp_path / "alone", **OF_TWO).folder


def on(cluster, folder, **change):
    words = {"dtype": torch.float32, "batch_size": 4, **OF_TWO, **change}
    return harvest_on_cluster(cluster, BACKBONE, BLOCKS, PROMPTS, 70, folder, **words)


def files_of(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def falling(at, marker):
    """A worker whose node falls at a shard."""

    class Falling(HarvestWorker):
        def work(self, number, harvest):
            if number == at:
                import ray_nodes

                ray_nodes.fall_here(Path(marker))
            return super().work(number, harvest)

    return Falling


@pytest.mark.process
@needs_ray
def test_a_store_has_the_bytes_of_one_machine_where_a_node_falls(alone, nodes, cluster, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "store"
    monkeypatch.setattr(on_cluster, "HarvestWorker", falling(1, tmp_path / "fallen"))
    with nodes.one_falls(tmp_path / "fallen"):
        found = on(cluster, folder)
    assert found.complete and files_of(folder) == files_of(alone)
    said = capsys.readouterr().err
    assert "a worker died over shard 1; another one takes it up" in said
    assert "harvesting" in said and "11/11 prompts" in said and "a second, 0:00 left" in said
    for path in (folder / "up.0.0" / "shard-000003.safetensors", folder / "down.2.1" / "shard-000005.safetensors"):
        path.unlink()
    made = []
    monkeypatch.setattr(on_cluster, "HarvestWorker", HarvestWorker)
    real = on_cluster.StoreWriter.write_encoded
    monkeypatch.setattr(
        on_cluster.StoreWriter, "write_encoded", lambda self, n, shard: made.append(n) or real(self, n, shard)
    )
    on(cluster, folder)
    assert sorted(made) == [3, 5] and files_of(folder) == files_of(alone), "what was missing, and nothing else"


@pytest.mark.process
@needs_ray
def test_a_worker_with_other_weights_is_refused_by_name(cluster, tmp_path, monkeypatch):
    class Other(HarvestWorker):
        def load(self, *words):
            found = super().load(*words)
            self._harvest.origin.made_by["weights_sha256"] = "0" * 64
            return found

        def work(self, number, harvest):
            harvest.origin.made_by["weights_sha256"] = "1" * 64
            return super().work(number, harvest)

    monkeypatch.setattr(on_cluster, "HarvestWorker", Other)
    with pytest.raises(UserError, match="harvests with another weights_sha256 than the first worker -> have the same"):
        on(cluster, tmp_path)
    assert ActivationStore.open(tmp_path).shards == 0


@pytest.mark.process
@needs_ray
def test_the_verb_harvests_on_a_cluster(cluster, tmp_path, capsys):
    words = ["harvest", "--blocks", "mid.0", "--count", "3", "--engine", "ray", "--out", str(tmp_path)]
    assert main(words) == 0
    assert "3 prompts, 192 vectors of mid.0" in capsys.readouterr().out
    store = json.loads((tmp_path / "store.json").read_text())
    assert store["made_by"]["dtype"] == "float32" and len(store["written"]) == 1
    assert main([*words[:-1], str(tmp_path / "none"), "--device", "cuda"]) == 2
    assert "the Ray cluster has no GPU (3 nodes)" in capsys.readouterr().err and not (tmp_path / "none").exists()
