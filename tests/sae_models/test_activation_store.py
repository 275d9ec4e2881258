"""The activation store and the shuffling buffer: format, damage, kills, and the order in which rows are read."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import os
import signal
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from killed import die_in_shard_file, exit_code_of_fork
from memory import live_bytes, only_new_objects
from safetensors.torch import load_file
from scipy.stats import chisquare
from stores import read_all

import sae_models.activation_store as activation_store
from riebench.core.errors import UserError
from sae_models.activation_store import COLUMNS, ActivationStore, Origin, Rows, StoreWriter
from sae_models.buffer import ShufflingBuffer

SIZES = (70, 33, 70, 5)  # rows of four shards
ORIGIN = Origin("model@1", {"mid.0": 4, "up.0.1": 6}, len(SIZES), {"seed": 3, "steps": 1})


def make_rows(number: int, width: int) -> Rows:
    """Rows whose first two values are their number in the store, in digits that bfloat16 holds, and the rest noise."""
    first, count = sum(SIZES[:number]), SIZES[number]
    index = torch.arange(first, first + count)
    noise = torch.randn(count, width - 2, generator=torch.Generator().manual_seed(number))
    values = torch.cat([torch.stack([index // 100, index % 100], dim=1).float(), noise], dim=1)
    return Rows(
        values.bfloat16(),
        prompt=index // 7,
        step=torch.zeros(count, dtype=torch.int16),
        position=(index % 7).int(),
        branch=(index % 2).to(torch.int8),
    )


def numbers_of(values_nd: torch.Tensor) -> list[int]:
    return (values_nd[:, 0].long() * 100 + values_nd[:, 1].long()).tolist()


def make_shard(number: int) -> dict[str, Rows]:
    return {block: make_rows(number, width) for block, width in ORIGIN.widths.items()}


def fill(folder, origin=ORIGIN) -> ActivationStore:
    with StoreWriter(folder, origin) as writer:
        for number in writer.missing:
            writer.write(number, make_shard(number))
    return ActivationStore.open(folder)


def at(batches, step: int) -> torch.Tensor:
    batches.seek(step)
    return next(batches)


def content(folder) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def store(tmp_path):
    return fill(tmp_path / "store")


def test_what_was_written_is_read(store):
    assert store.backbone == "model@1" and store.blocks == ("mid.0", "up.0.1") and store.complete
    assert store.rows == {"mid.0": sum(SIZES), "up.0.1": sum(SIZES)}
    for number in range(len(SIZES)):
        for name, value in vars(store.read("up.0.1", number)).items():
            assert torch.equal(value, getattr(make_rows(number, 6), name)), name
    read_all(store)


def test_the_files_are_as_the_page_says(store):
    """Read with safetensors and json alone."""
    described = json.loads((store.folder / "store.json").read_text())
    assert described["format"] == "riebench activation store" and described["version"] == 1
    assert described["dtype"] == "bfloat16" and described["branches"] == ["cond", "uncond"]
    assert described["widths"] == dict(ORIGIN.widths) and described["made_by"] == dict(ORIGIN.made_by)
    file = store.folder / "mid.0" / "shard-000002.safetensors"
    said = described["written"][2]["mid.0"]
    assert said == {
        "rows": 70,
        "bytes": file.stat().st_size,
        "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
    }
    found = load_file(file)
    assert {name: str(value.dtype).removeprefix("torch.") for name, value in found.items()} == {
        "values": "bfloat16",
        **described["columns"],
    }
    assert found["values"].shape == (70, 4) and found["prompt"].tolist() == [i // 7 for i in range(103, 173)]


def test_an_interrupted_store_is_readable_and_goes_on_to_the_same_bytes(tmp_path):
    whole, stopped = fill(tmp_path / "whole").folder, tmp_path / "stopped"
    with pytest.raises(KeyboardInterrupt), StoreWriter(stopped, ORIGIN) as writer:
        for number in writer.missing:
            if number == 2:
                raise KeyboardInterrupt
            writer.write(number, make_shard(number))
    found = ActivationStore.open(stopped)
    assert not found.complete and found.rows["mid.0"] == sum(SIZES[:2])
    with StoreWriter(stopped, ORIGIN) as writer:
        assert writer.missing == [2, 3]
    fill(stopped)
    assert content(stopped) == content(whole)


@pytest.mark.process
def test_kill_9_in_the_middle_of_a_shard_loses_nothing_written(tmp_path):
    whole, killed = fill(tmp_path / "whole").folder, tmp_path / "killed"

    def fill_and_die() -> None:
        die_in_shard_file(6)  # the second block of the third shard
        fill(killed)

    assert exit_code_of_fork(fill_and_die) == -signal.SIGKILL
    assert any(path.name.startswith(".shard-") for path in killed.rglob("*")), "half a shard lies there"
    found = ActivationStore.open(killed)
    read_all(found)
    assert found.rows["up.0.1"] == sum(SIZES[:2])
    fill(killed)
    assert content(killed) == content(whole)


def test_written_behind_is_what_is_written(tmp_path):
    whole, behind = fill(tmp_path / "whole").folder, tmp_path / "behind"
    with StoreWriter(behind, ORIGIN) as writer:
        for number in writer.missing:
            writer.write_behind(number, make_shard(number))
    assert content(behind) == content(whole), "leaving waited for the last one"


def test_one_shard_at_most_is_written_behind(tmp_path, monkeypatch):
    go_on, real = threading.Event(), activation_store.encode
    monkeypatch.setattr(activation_store, "encode", lambda *words: go_on.wait() and real(*words))
    with StoreWriter(tmp_path, ORIGIN) as writer:
        writer.write_behind(0, make_shard(0))  # returns while it is written
        second = threading.Thread(target=writer.write_behind, args=(1, make_shard(1)))
        second.start()
        second.join(0.2)
        assert second.is_alive(), "it waits for the first"
        go_on.set()
        second.join()
    assert ActivationStore.open(tmp_path).shards == 2


def test_shards_that_come_out_of_order_are_named_in_order_and_the_same_bytes(tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    with StoreWriter(one, ORIGIN) as writer:
        for number in range(ORIGIN.shards):
            writer.write(number, make_shard(number))
    with StoreWriter(other, ORIGIN) as writer:
        for number in reversed(range(ORIGIN.shards)):
            assert ActivationStore.open(other).shards == 0, "the first is missing"
            writer.write(number, make_shard(number))
    names = [path.relative_to(one) for path in one.rglob("*") if path.is_file()]
    assert [(one / name).read_bytes() for name in names] == [(other / name).read_bytes() for name in names]


def test_errors_of_what_is_written_behind_reach_the_caller(tmp_path, monkeypatch):
    real = Path.write_bytes

    def no_room(path, data):
        if "shard-000001" in path.name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(path, data)

    monkeypatch.setattr(Path, "write_bytes", no_room)

    def start(folder) -> StoreWriter:
        with StoreWriter(folder, ORIGIN) as writer:
            writer.write_behind(0, make_shard(0))
            writer.write_behind(1, make_shard(1))
            yield writer

    with pytest.raises(UserError, match="No space left on device"):
        for writer in start(tmp_path / "next"):
            writer.write_behind(2, make_shard(2))
    with pytest.raises(UserError, match="No space left on device"):
        list(start(tmp_path / "last"))
    with pytest.raises(KeyboardInterrupt), StoreWriter(tmp_path / "other", ORIGIN) as writer:
        writer.write_behind(0, make_shard(0))
        writer.write_behind(1, make_shard(1))
        raise KeyboardInterrupt
    for name in ("next", "last", "other"):
        assert ActivationStore.open(tmp_path / name).shards == 1
        with StoreWriter(tmp_path / name, ORIGIN) as writer:
            assert writer.missing == [1, 2, 3], "the lock is free, and nothing half written counts"


def test_a_full_disk_is_said_and_leaves_what_was_written(tmp_path, monkeypatch):
    whole, full = fill(tmp_path / "whole").folder, tmp_path / "full"

    def no_room(path, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(UserError, match="No space left on device.*with room"), StoreWriter(full, ORIGIN) as writer:
        writer.write(0, make_shard(0))
        monkeypatch.setattr(Path, "write_bytes", no_room)
        writer.write(1, make_shard(1))
    monkeypatch.undo()
    found = ActivationStore.open(full)
    read_all(found)
    assert found.shards == 1
    fill(full)
    assert content(full) == content(whole)


def test_a_truncated_or_missing_shard_is_named_and_made_again_alone(store):
    before = content(store.folder)
    cut, gone = (store.folder / "mid.0" / f"shard-00000{number}.safetensors" for number in (0, 2))
    cut.write_bytes(cut.read_bytes()[:-9])
    gone.unlink()
    with pytest.raises(UserError, match="shard-000000.safetensors has .* bytes, and was written with.*shard-000002"):
        ActivationStore.open(store.folder)
    with pytest.raises(UserError, match="mid.0/shard-000000.safetensors is not as it was written"):
        store.read("mid.0", 0)
    with StoreWriter(store.folder, ORIGIN) as writer:
        assert writer.missing == [0, 2]
    fill(store.folder)
    assert content(store.folder) == before


def test_a_changed_bit_is_found_by_its_hash(store):
    path = store.folder / "up.0.1" / "shard-000001.safetensors"
    data = bytearray(path.read_bytes())
    data[-3] ^= 4
    path.write_bytes(data)
    found = ActivationStore.open(store.folder)
    with pytest.raises(UserError, match="shard-000001.safetensors is not as it was written: its sha256 differs"):
        read_all(found)
    with pytest.raises(UserError, match="sha256 differs"):
        for step in range(9):
            at(found.batches("up.0.1", 20), step)
    assert len(found.read("mid.0", 1)) == 33, "the others can be read"


def test_stores_that_do_not_fit_are_refused(store):
    store.expect(backbone="model@1", block="mid.0", width=4)
    for words, message in (
        ({"backbone": "other@4"}, "is a store of model@1, not of other@4"),
        ({"block": "mid.1"}, "no block 'mid.1'; did you mean 'mid.0'"),
        ({"block": "up.0.1", "width": 4}, "up.0.1 have 6 numbers, not 4"),
        ({"width": 4}, "up.0.1 have 6 numbers, not 4"),
    ):
        with pytest.raises(UserError, match=message):
            store.expect(**words)
    path = store.folder / "store.json"
    described = json.loads(path.read_text())
    for change, message in (
        ({"version": 2}, "version 2, and this riebench reads version 1"),
        ({"format": "something"}, "not of an activation store"),
        ({"widths": {"mid.0": 5, "up.0.1": 6}}, r"\(70, 4\).* not .*\(70, 5\)"),
        ({"written": [{"mid.0": {}}]}, "lacks something"),
    ):
        path.write_text(json.dumps(described | change))
        with pytest.raises(UserError, match=message):
            ActivationStore.open(store.folder).read("mid.0", 0)
    with pytest.raises(UserError, match="does not exist"):
        ActivationStore.open(store.folder / "nowhere")


def test_only_the_same_harvest_goes_on(store):
    for change, message in (
        ({"backbone": "other@4"}, "backbone 'model@1', not 'other@4'"),
        ({"made_by": {"seed": 4, "steps": 1}}, "seed 3, not 4"),
        ({"widths": {"mid.0": 4}}, "blocks"),
    ):
        with pytest.raises(UserError, match=message), StoreWriter(store.folder, dataclasses.replace(ORIGIN, **change)):
            pass
    with (
        StoreWriter(store.folder, ORIGIN),
        pytest.raises(UserError, match="another process"),
        StoreWriter(store.folder, ORIGIN),
    ):
        pass


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_rows_that_are_not_finite_are_not_written(tmp_path, value):
    shard = make_shard(1)
    shard["up.0.1"].values[17, 3] = value
    with StoreWriter(tmp_path, ORIGIN) as writer:
        writer.write(0, make_shard(0))
        with pytest.raises(UserError, match=f"up.0.1: the row of prompt {(70 + 17) // 7}, step 0, position 3 holds"):
            writer.write(1, shard)
    assert ActivationStore.open(tmp_path).shards == 1


READING = [{}, {"window_rows": 40, "chunk_rows": 8}, {"window_rows": 1, "chunk_rows": 3}, {"window_rows": 10**6}]


@pytest.mark.parametrize("settings", READING)
@pytest.mark.parametrize("batch_size", [1, 16, 178, 400])
def test_every_row_comes_exactly_once_an_epoch_with_its_own_values(store, batch_size, settings):
    batches = store.batches("mid.0", batch_size, seed=5, **settings)
    count = sum(SIZES)
    rows = torch.cat([next(batches) for _ in range(-(-3 * count // batch_size))])
    orders = [numbers_of(rows[epoch * count : (epoch + 1) * count]) for epoch in range(3)]
    assert all(sorted(order) == list(range(count)) for order in orders)
    assert orders[0] != orders[1] != orders[2]
    written = torch.cat([make_rows(number, 4).values for number in range(len(SIZES))])
    assert torch.equal(rows, written[numbers_of(rows)])


@pytest.mark.parametrize("settings", READING)
def test_a_batch_depends_on_the_step_alone(store, settings):
    reading = store.batches("mid.0", 16, seed=5, **settings)
    straight = [next(reading) for _ in range(30)]
    for step in (29, 0, 11, 12, 3):
        assert torch.equal(at(reading, step), straight[step])
        assert torch.equal(at(store.batches("mid.0", 16, seed=5, **settings), step), straight[step])
    assert not torch.equal(next(store.batches("mid.0", 16, seed=6, **settings)), straight[0])


def test_a_saved_position_goes_on(store):
    reading = store.batches("mid.0", 16, seed=5)
    for _ in range(7):
        next(reading)
    state = json.loads(json.dumps(reading.state()))
    again = ActivationStore.open(store.folder).batches("mid.0", 16, seed=5)
    again.restore(state)
    assert again.position == 7 and torch.equal(next(again), next(reading))
    for other in (store.batches("mid.0", 16, seed=6), store.batches("mid.0", 8, seed=5)):
        with pytest.raises(UserError, match="the position is of batches with another (seed|batch_size)"):
            other.restore(state)
    reading.seek(0)
    assert torch.equal(next(reading), at(again, 0))


def test_rows_of_distant_shards_meet_in_a_window_and_order_within_chunks_is_lost(store):
    order = numbers_of(next(store.batches("mid.0", 64, window_rows=64, chunk_rows=4)))
    assert {0 if n < 70 else 1 if n < 103 else 2 for n in order} == {0, 1, 2}
    assert sum(b - a == 1 for a, b in zip(order, order[1:], strict=False)) < 10, "in a file 48 of 63 follow each other"


@pytest.mark.slow
def test_memory_of_reading_is_as_stated_and_does_not_grow_with_the_store(tmp_path):
    """Tensors that live while batches are read, counted by the garbage collector."""
    count, width = 40_000, 32
    origin = Origin("model@1", {"mid.0": width}, 4)
    with StoreWriter(tmp_path, origin) as writer:
        for number in range(4):
            columns = {name: torch.zeros(count, dtype=dtype) for name, dtype in COLUMNS.items()}
            writer.write(number, {"mid.0": Rows(torch.randn(count, width).bfloat16(), **columns)})
    del columns
    with only_new_objects():
        before = live_bytes()
        batches = ActivationStore.open(tmp_path).batches("mid.0", 9_000, window_rows=8_192)
        most = 0
        for _ in range(4):
            batch = next(batches)
            most = max(most, live_bytes() - before)
    assert len(batch) == 9_000
    assert (8_192 + 9_000) * width * 2 <= most <= batches.bytes < 4 * count * width * 2 / 2


def test_reading_without_rows_or_sense_is_refused(tmp_path, store):
    with StoreWriter(tmp_path / "empty", ORIGIN):
        pass
    with pytest.raises(UserError, match="holds no rows to read"):
        ActivationStore.open(tmp_path / "empty").batches("mid.0", 4)
    for words in ({"batch_size": 0}, {"batch_size": 4, "window_rows": 0}, {"batch_size": 4, "chunk_rows": -1}):
        with pytest.raises(UserError, match="give a whole number of at least 1"):
            store.batches("mid.0", **words)
    with pytest.raises(UserError, match="no block"):
        store.batches("mid.9", 4)


def test_a_buffer_gives_every_row_once_and_is_a_function_of_seed_and_calls():
    def run(seed):
        buffer, out = ShufflingBuffer(50, 1, torch.float32, seed=seed), []
        buffer.add(torch.arange(50.0)[:, None])
        for start in range(50, 200, 30):
            out.append(buffer.draw(30))
            buffer.add(torch.arange(float(start), start + 30)[:, None])
        return torch.cat([*out, buffer.draw(buffer.held)]).flatten().tolist()

    assert sorted(run(0)) == list(range(200))
    assert run(0) == run(0) != run(1)


@pytest.mark.slow
def test_a_buffer_draws_uniformly():
    """How often each of 20 rows, added in two parts, is among the first 5 and in the last place; 4000 seeds."""
    among, last = np.zeros(20), np.zeros(20)
    for seed in range(4_000):
        buffer = ShufflingBuffer(20, 1, torch.float32, seed=seed)
        buffer.add(torch.arange(12.0)[:, None])
        buffer.add(torch.arange(12.0, 20.0)[:, None])
        among[buffer.draw(5).flatten().long()] += 1
        last[int(buffer.draw(15)[-1])] += 1
    assert chisquare(among).pvalue > 0.01 and chisquare(last).pvalue > 0.01


def test_rows_added_after_draws_mix_with_those_that_stayed():
    """Of 10 that stayed and 10 that came, each is as likely to be drawn; 2000 seeds."""
    came = []
    for seed in range(2_000):
        buffer = ShufflingBuffer(20, 1, torch.float32, seed=seed)
        buffer.add(torch.zeros(20, 1))
        buffer.draw(10)
        buffer.add(torch.ones(10, 1))
        came.append(float(buffer.draw(4).sum()))
    assert np.mean(came) == pytest.approx(2, abs=0.08), "four standard errors"


def test_an_order_depends_on_the_seed_alone():
    buffer = ShufflingBuffer(30, 1, torch.float32, seed=3)
    buffer.add(torch.arange(30.0)[:, None])
    orders = []
    for seed, count in ((5, 30), (6, 7), (5, 30)):
        buffer.shuffle(seed)
        orders.append(buffer.draw(count).flatten().tolist())
    assert orders[0] == orders[2] != sorted(orders[0]) and sorted(orders[0]) == list(range(30))
    assert orders[1] != orders[0][:7]


def test_rewinding_brings_the_same_rows_again():
    buffer = ShufflingBuffer(30, 2, seed=3)
    buffer.add(torch.randn(30, 2))
    first = [buffer.draw(7) for _ in range(4)]
    buffer.rewind()
    assert buffer.held == 30
    assert all(torch.equal(buffer.draw(7), drawn) for drawn in first)


def test_a_buffer_says_its_size_and_refuses_what_does_not_fit():
    buffer = ShufflingBuffer(100, 8)
    assert (buffer.rows, buffer.held, buffer.bytes) == (100, 0, 100 * 8 * 2 + 100 * 8)
    buffer.add(torch.zeros(60, 8))
    for call in (
        lambda: buffer.add(torch.zeros(41, 8)),
        lambda: buffer.add(torch.zeros(1, 7)),
        lambda: buffer.draw(61),
    ):
        with pytest.raises(ValueError):
            call()
    assert buffer.held == 60


@pytest.mark.gpu
def test_a_buffer_on_the_gpu_gives_the_same_rows():
    buffers = [ShufflingBuffer(40, 3, device=device, seed=2) for device in ("cpu", "cuda")]
    rows = torch.randn(40, 3)
    for buffer in buffers:
        buffer.add(rows)
    assert torch.equal(buffers[0].draw(25), buffers[1].draw(25).cpu())
