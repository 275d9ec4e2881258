"""Batches straight from generation: every row once, a batch known by its step, resumption, bad input."""

from __future__ import annotations

from itertools import islice

import pytest
import torch

import riebench.dictionaries.harvest as harvest
from riebench.core.errors import UserError
from riebench.dictionaries.harvest import harvest_to_store, stream
from riebench.dictionaries.prompts import world_prompts
from riebench.dictionaries.streaming import StreamedBatches
from sae_models.architectures import Architecture, TopK
from sae_models.trainer import TrainConfig, train

BLOCKS = ("down.2.1", "up.0.0")
PROMPTS = world_prompts(11, seed=8)


def batches_of(sampler, **change):
    settings = {"seed": 70, "batch_size": 96, "buffer_rows": 400} | change
    return StreamedBatches(sampler, BLOCKS, PROMPTS, **settings)


def at(batches, step: int) -> torch.Tensor:
    batches.seek(step)
    return next(batches)


def test_streamed_batches_hold_every_row_once_and_the_same_of_every_block(of_four):
    batches = batches_of(of_four)
    assert batches.window_prompts == 6, "384 of 400 rows: whole prompts, whole batches"
    assert batches.buffer_rows == 384 and batches.bytes == 2 * 384 * (96 * 2 + 8)
    assert batches.steps == 11 * 64 // 96
    drawn = list(islice(batches, batches.steps))
    assert drawn[0].shape == (2, 96, 96)
    chunks = list(stream(of_four, BLOCKS, PROMPTS, seed=70))
    places = {}
    for index, block in enumerate(BLOCKS):
        values = torch.cat([chunk[block].values for chunk in chunks])
        known = {row.numpy().tobytes(): i for i, row in enumerate(values.view(torch.int16))}
        assert len(known) == 11 * 64
        places[block] = [known[row.numpy().tobytes()] for b in drawn for row in b[index].view(torch.int16)]
    assert places["down.2.1"] == places["up.0.0"]
    assert sorted(places["up.0.0"][:384]) == list(range(384)), "the first window"
    assert len(set(places["up.0.0"])) == 7 * 96
    assert places["up.0.0"][:96] != sorted(places["up.0.0"][:96])


@pytest.mark.slow
def test_a_streamed_batch_depends_on_its_step_alone(of_four):
    batches = batches_of(of_four)
    straight = list(islice(batches, 16))
    for step in (2, 0, 6, 5, 1, 9, 15, 7):
        assert torch.equal(at(batches, step), straight[step])
        assert torch.equal(at(batches_of(of_four), step), straight[step])
    assert not torch.equal(next(batches_of(of_four, seed=71)), straight[0])


def test_steps_of_the_window_that_is_held_generate_nothing(of_four, monkeypatch):
    batches = batches_of(of_four)
    at(batches, 3)
    monkeypatch.setattr(harvest, "_chunk", lambda *_: pytest.fail("generated"))
    for step in (0, 3, 1):
        at(batches, step)


def test_each_epoch_of_prompts_that_fit_has_the_same_rows_in_another_order_and_generates_nothing(of_four, monkeypatch):
    batches = batches_of(of_four, batch_size=64, buffer_rows=1000)
    assert (batches.window_prompts, batches.buffer_rows, batches.steps) == (11, 704, 11)
    first = torch.cat(list(islice(batches, 11)), dim=1)
    monkeypatch.setattr(harvest, "_chunk", lambda *_: pytest.fail("generated"))
    second = torch.cat(list(islice(batches, 11)), dim=1)
    assert not torch.equal(first, second)
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one.float().sort(dim=0).values, other.float().sort(dim=0).values)


def test_batches_that_cannot_be_made_are_refused(of_four):
    with pytest.raises(UserError, match="give it 192 rows"):
        batches_of(of_four, buffer_rows=191)
    with pytest.raises(UserError, match="11 prompts give 704 rows, and a batch takes 1024"):
        batches_of(of_four, batch_size=1024, buffer_rows=2048)
    with pytest.raises(UserError, match="no step -1"):
        batches_of(of_four).seek(-1)


@pytest.mark.slow
@pytest.mark.parametrize("source", ["stream", "store"])
def test_training_that_was_killed_goes_on_exactly(of_four, tmp_path, monkeypatch, source):
    """Killed behind the state of step four of seven; the weights are those of the training that was never stopped."""
    config, architectures = TrainConfig(steps=7), [Architecture(96, 192, TopK(4))]
    store = harvest_to_store(of_four, BLOCKS, PROMPTS, 70, tmp_path / "store")

    def batches():
        return batches_of(of_four) if source == "stream" else store.batches("up.0.0", 96, seed=1)

    def killed(state, path):
        if state["step"] > 4:
            raise KeyboardInterrupt
        real(state, path)

    (whole,) = train(batches(), architectures, config)
    real = torch.save
    monkeypatch.setattr(torch, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        train(batches(), architectures, config, folder=tmp_path / "state", checkpoint_every=4)
    monkeypatch.undo()
    (resumed,) = train(batches(), architectures, config, folder=tmp_path / "state", checkpoint_every=4)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
