"""Streaming updates, and into a store: right rows, bits without company, writing behind, resumption, bad input."""

from __future__ import annotations

import dataclasses
import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from memory import live_bytes, only_new_objects
from sdxl_blocks import BLOCK_NAMES
from stores import read_all

import riebench.dictionaries.harvest as harvest
from riebench.backbones.table import BACKBONES
from riebench.cli import main
from riebench.core.errors import UserError
from riebench.dictionaries.harvest import harvest_to_store, rows_per_prompt, stream
from riebench.dictionaries.prompts import world_prompts
from riebench.generation.sampler import Request, Sampler, load_sampler
from sae_models.activation_store import ActivationStore, Rows

BLOCKS = ("down.2.1", "up.0.0")
PROMPTS = world_prompts(11, seed=8)
OF_THREE = {"shard_bytes": 3 * 64 * 96 * 2}  # prompts a shard; four shards


@pytest.fixture(autouse=True)
def one_core(monkeypatch):
    """So that batches are made one after the other; what several cores change is tested by itself."""
    monkeypatch.setattr(harvest, "usable_cores", lambda: 1)


@pytest.fixture(scope="module")
def guided():
    """tinyworld-base in three steps with guidance."""
    backbone = dataclasses.replace(BACKBONES.get("tinyworld-base@25"), name="tinyworld-base@3", steps=3)
    return load_sampler(backbone, torch.device("cpu"), 2)


def gathered(chunks) -> dict[str, Rows]:
    chunks = list(chunks)
    return {block: joined([chunk[block] for chunk in chunks]) for block in chunks[0]}


def joined(parts: list[Rows]) -> Rows:
    return Rows(*(torch.cat([getattr(part, item.name) for part in parts]) for item in dataclasses.fields(Rows)))


def same(one: Rows, other: Rows) -> bool:
    return all(torch.equal(value, vars(other)[name]) for name, value in vars(one).items())


def files_of(folder) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_rows_are_the_sampler_s_updates_with_their_columns(of_four):
    rows = gathered(stream(of_four, BLOCK_NAMES, PROMPTS, seed=70))
    traces = of_four.trace(
        [Request(p, 70 + i) for i, p in enumerate(PROMPTS)], of_four.blocks.sites(BLOCK_NAMES, "update")
    )
    for (site, _), found in zip(traces[0].items(), rows.values(), strict=True):
        assert len(found) == len(PROMPTS) * 64 == len(PROMPTS) * rows_per_prompt(of_four, site.block)
        for row in (0, 64 * 3 + 17, len(found) - 1):
            y, x = divmod(int(found.position[row]), 8)
            whole = traces[int(found.prompt[row])][site][int(found.step[row])].unflatten(0, (8, 8))
            expected = whole[y, x]
            torch.testing.assert_close(found.values[row].float(), expected, rtol=2**-8, atol=1e-4)
            assert found.branch[row] == 0
        places = torch.stack([found.prompt, found.position.long()], dim=1)
        assert len(places.unique(dim=0)) == len(found)


@pytest.mark.slow
def test_under_guidance_both_branches_of_every_step_are_told_apart(guided):
    prompts = PROMPTS[:3]
    rows = gathered(stream(guided, BLOCKS, prompts, seed=5))
    (site,) = guided.blocks.sites(BLOCKS[1:], "update")
    samples = guided.generate([Request(p, 5 + i) for i, p in enumerate(prompts)], [site], decode=False)
    found = rows["up.0.0"]
    assert len(found) == 3 * 2 * 3 * 64
    for prompt, sample in enumerate(samples):
        for branch, trace in enumerate((sample.trace[site], sample.uncond_trace[site])):
            for step in range(3):
                here = (found.prompt == prompt) & (found.branch == branch) & (found.step == step)
                assert found.position[here].tolist() == list(range(64))
                torch.testing.assert_close(found.values[here].float(), trace[step], rtol=2**-7, atol=1e-3)
    for branch, name in enumerate(("cond", "uncond")):
        alone = gathered(stream(guided, BLOCKS, prompts, seed=5, branch=name))["up.0.0"]
        assert same(alone, Rows(*(value[found.branch == branch] for value in vars(found).values())))


def test_a_row_s_bits_do_not_depend_on_where_a_harvest_starts(of_four):
    whole = gathered(stream(of_four, BLOCKS, PROMPTS, seed=70))
    for start, stop in ((3, None), (5, 6)):
        part = gathered(stream(of_four, BLOCKS, PROMPTS, seed=70, start=start, stop=stop))
        for block in BLOCKS:
            assert same(part[block], whole[block][start * 64 : stop and stop * 64])


def test_neither_the_vae_nor_what_lies_behind_the_last_block_is_run(of_four, guided, monkeypatch):
    for sampler, steps in ((of_four, 1), (guided, 3)):
        calls = {"vae": 0, "last block": 0, "behind": 0}
        hooks = [
            module.register_forward_hook(lambda *_, name=name, calls=calls: calls.update({name: calls[name] + 1}))
            for name, module in (
                ("last block", sampler.blocks.module("up.0.0")),
                ("behind", sampler.denoiser.conv_out),
            )
        ]
        monkeypatch.setattr(sampler.pipeline.vae, "decode", lambda *_a, **_k: pytest.fail("decoded"))
        for _ in stream(sampler, BLOCKS, PROMPTS[:1], seed=0):
            pass
        for hook in hooks:
            hook.remove()
        assert calls == {"vae": 0, "last block": steps, "behind": steps - 1}
        assert not any(module._forward_hooks for module in sampler.denoiser.modules()), "hooks came off"


def test_prompts_are_encoded_a_batch_at_a_time_without_marks(of_four, monkeypatch):
    asked, real = [], of_four.pipeline.encode_prompt

    def encode(prompts=None, *words, **named):
        if prompts is not None:  # the pipeline asks again, with what it was given
            asked.append(prompts)
        return real(prompts, *words, **named) if prompts is not None else real(*words, **named)

    monkeypatch.setattr(of_four.pipeline, "encode_prompt", encode)
    marked = ["[flat poster] of a cat", *PROMPTS[1:6]]
    for _ in stream(of_four, BLOCKS, marked, seed=0):
        pass
    assert [len(prompts) for prompts in asked] == [4, 4] and asked[0][0] == "flat poster of a cat"


@pytest.mark.slow
def test_a_store_holds_what_is_streamed(of_four, tmp_path):
    store = harvest_to_store(of_four, BLOCKS, PROMPTS, 70, tmp_path, **OF_THREE)
    store.expect(backbone="tinyworld-turbo@1", block="down.2.1", width=96)
    read_all(store)
    assert store.complete and store.shards == 4 and store.rows == dict.fromkeys(BLOCKS, 11 * 64)
    assert store.origin.made_by["grids"]["up.0.0"] == [8, 8] and store.origin.made_by["shard_prompts"] == 3
    rows = gathered(stream(of_four, BLOCKS, PROMPTS, seed=70))
    for block in BLOCKS:
        assert same(joined([store.read(block, shard) for shard in range(4)]), rows[block])


@pytest.mark.slow
def test_a_killed_harvest_goes_on_to_the_same_bytes(of_four, tmp_path, monkeypatch):
    words, size = (of_four, BLOCKS, PROMPTS, 70), OF_THREE
    whole = harvest_to_store(*words, tmp_path / "whole", **size).folder
    real, made = harvest._chunk, []

    def killed(sampler, blocks, prompts, numbers, *rest):
        made.append(numbers)
        if len(made) == 3:
            raise KeyboardInterrupt
        return real(sampler, blocks, prompts, numbers, *rest)

    monkeypatch.setattr(harvest, "_chunk", killed)
    stopped = tmp_path / "stopped"
    with pytest.raises(KeyboardInterrupt):
        harvest_to_store(*words, stopped, **size)
    assert ActivationStore.open(stopped).shards == 2
    del made[:3]
    made += [range(0)] * 5  # from here on it only listens
    harvest_to_store(*words, stopped, **size)
    assert made[5:] == [range(6, 10), range(10, 11)], "only what was missing, from the middle of a batch on"
    assert files_of(stopped) == files_of(whole)
    del made[5:]
    (stopped / "up.0.0" / "shard-000001.safetensors").unlink()
    harvest_to_store(*words, stopped, **size)
    assert made[5:] == [range(3, 6)] and files_of(stopped) == files_of(whole)
    harvest_to_store(*words, stopped, **size)
    assert made[5:] == [range(3, 6)], "nothing is made where nothing is missing"
    with pytest.raises(UserError, match="prompts_sha256"):
        harvest_to_store(of_four, BLOCKS, [*PROMPTS[1:], "another"], 70, stopped, **size)
    with pytest.raises(UserError, match="seed 70, not 71"):
        harvest_to_store(of_four, BLOCKS, PROMPTS, 71, stopped, **size)


KILLED = """
import sys
from pathlib import Path
import torch
import riebench.dictionaries.harvest as harvest
from riebench.backbones.table import BACKBONES
from riebench.generation.sampler import load_sampler
sys.path.insert(0, sys.argv[1])
import test_harvest as made
from killed import die_in_shard_file

die_in_shard_file(6)  # the second block of the third shard
sampler = load_sampler(BACKBONES.get("tinyworld-turbo@1"), torch.device("cpu"), 4)
harvest.harvest_to_store(sampler, made.BLOCKS, made.PROMPTS, 70, Path(sys.argv[2]), **made.OF_THREE)
"""


@pytest.mark.process
def test_kill_9_while_a_shard_is_written_and_the_next_is_made(of_four, tmp_path):
    whole = harvest_to_store(of_four, BLOCKS, PROMPTS, 70, tmp_path / "whole", **OF_THREE).folder
    killed = tmp_path / "killed"
    words = [sys.executable, "-c", KILLED, str(Path(__file__).parent), str(killed)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run(words, env=environment).returncode == -signal.SIGKILL
    found = ActivationStore.open(killed)
    read_all(found)
    assert found.shards == 2
    harvest_to_store(of_four, BLOCKS, PROMPTS, 70, killed, **OF_THREE)
    assert files_of(killed) == files_of(whole)


@pytest.fixture
def heard_ctrl_c():
    """SIGINT raises, also where the tests run in a shell's background, which has it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.process
@pytest.mark.usefixtures("heard_ctrl_c")
def test_ctrl_c_leaves_what_was_handed_over_and_goes_on_to_the_same_bytes(of_four, tmp_path, monkeypatch):
    whole = harvest_to_store(of_four, BLOCKS, PROMPTS, 70, tmp_path / "whole", **OF_THREE).folder
    real = harvest._chunk

    def pressed(sampler, blocks, prompts, numbers, *rest):
        if numbers.start == 8:
            os.kill(os.getpid(), signal.SIGINT)  # while the main thread waits for this batch
        return real(sampler, blocks, prompts, numbers, *rest)

    monkeypatch.setattr(harvest, "_chunk", pressed)
    stopped = tmp_path / "stopped"
    with pytest.raises(KeyboardInterrupt):
        harvest_to_store(of_four, BLOCKS, PROMPTS, 70, stopped, **OF_THREE)
    monkeypatch.setattr(harvest, "_chunk", real)
    found = ActivationStore.open(stopped)
    read_all(found)
    assert found.shards <= 2
    harvest_to_store(of_four, BLOCKS, PROMPTS, 70, stopped, **OF_THREE)
    assert files_of(stopped) == files_of(whole)


def test_a_full_disk_is_said_and_what_was_written_stays(of_four, tmp_path, monkeypatch):
    whole = harvest_to_store(of_four, BLOCKS, PROMPTS, 70, tmp_path / "whole", **OF_THREE).folder
    real = Path.write_bytes

    def no_room(path, data):
        if "shard-000001" in path.name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(path, data)

    monkeypatch.setattr(Path, "write_bytes", no_room)
    full = tmp_path / "full"
    with pytest.raises(UserError, match="shard-000001.*No space left on device.*with room"):
        harvest_to_store(of_four, BLOCKS, PROMPTS, 70, full, **OF_THREE)
    monkeypatch.setattr(Path, "write_bytes", real)
    assert ActivationStore.open(full).shards == 1
    harvest_to_store(of_four, BLOCKS, PROMPTS, 70, full, **OF_THREE)
    assert files_of(full) == files_of(whole)


@pytest.mark.slow
def test_several_samplers_make_the_same_bytes(of_four, tmp_path, monkeypatch):
    """Three, of which the first takes longest, with the same weights and the same size of a batch."""
    alone = harvest_to_store(of_four, BLOCKS, PROMPTS, 70, tmp_path / "alone", **OF_THREE).folder
    monkeypatch.setattr(harvest, "usable_cores", lambda: 3 * -(-harvest.machine_cores() // harvest.MOST_SAMPLERS))
    real, made = harvest._chunk, {}

    def noted(sampler, *rest):
        made[sampler] = rest[2]
        time.sleep(0.3 if rest[2].start == 0 else 0)
        return real(sampler, *rest)

    monkeypatch.setattr(harvest, "_chunk", noted)
    together = harvest_to_store(of_four, BLOCKS, PROMPTS, 70, tmp_path / "together", **OF_THREE).folder
    assert sorted(numbers.start for numbers in made.values()) == [0, 4, 8], "each makes one of three batches"
    assert {sampler.batch_size for sampler in made} == {4} and of_four in made
    assert len({next(sampler.denoiser.parameters()).data_ptr() for sampler in made}) == 1
    assert files_of(together) == files_of(alone)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_harvest(of_four, tmp_path, monkeypatch):
    """Tensors that live when a batch was made: two shards of both blocks and two batches at most."""
    real, most = harvest._chunk, []

    def watched(*words):
        found = real(*words)
        most[-1] = max(most[-1], live_bytes() - before)
        return found

    monkeypatch.setattr(harvest, "_chunk", watched)
    row = len(BLOCKS) * 64 * (96 * 2 + 15)  # bytes a prompt
    with only_new_objects():
        for shards in (2, 6):
            before = live_bytes()
            most.append(0)
            prompts = (PROMPTS * 6)[: 8 * shards]
            harvest_to_store(of_four, BLOCKS, prompts, 70, tmp_path / str(shards), shard_bytes=8 * 64 * 96 * 2)
    assert 8 * row < most[0] and max(most) <= (2 * 8 + 3 * 4) * row, "two shards, and batches at hand"


@pytest.mark.slow
def test_rows_that_are_not_finite_are_refused_by_prompt_and_step(guided, tmp_path):
    """From the middle of the second batch, at the second step, in the row that sees the prompt."""
    calls = []

    def spoil(_module, _args, output):
        calls.append(None)
        if len(calls) == 3 + 2:
            output[0][2 + 1, 7, 4, 2] = float("nan")

    hook = guided.blocks.module("down.2.1").register_forward_hook(spoil, prepend=True)
    try:
        with pytest.raises(UserError, match="down.2.1: the row of prompt 3, step 1, position 34 holds NaN"):
            harvest_to_store(guided, BLOCKS, PROMPTS[:6], 0, tmp_path, shard_bytes=1)
    finally:
        hook.remove()
    found = ActivationStore.open(tmp_path)
    read_all(found)
    assert found.shards == 2, "what was whole before stays"


def test_what_cannot_be_harvested_is_refused(of_four, tmp_path):
    for change, message in (
        ({"blocks": ("mid.1",)}, "unknown block"),
        ({"branch": "uncond"}, "has no unconditional row"),
        ({"branch": "left"}, "branch is 'left'"),
        ({"prompts": []}, "nothing to harvest"),
        ({"blocks": ()}, "nothing to harvest"),
    ):
        settings = {"blocks": BLOCKS, "prompts": PROMPTS, "branch": "both"} | change
        with pytest.raises(UserError, match=message):
            harvest_to_store(of_four, seed=0, folder=tmp_path / "none", **settings)
    assert not (tmp_path / "none").exists()


def test_the_precision_is_chosen_and_part_of_what_a_store_is(tmp_path, capsys):
    words = ["harvest", "--blocks", "mid.0", "--count", "3", "--out", str(tmp_path / "store"), "--dtype"]
    assert main([*words, "bfloat16"]) == 0
    assert ActivationStore.open(tmp_path / "store").origin.made_by["dtype"] == "bfloat16"
    assert main([*words, "float32"]) == 2 and "dtype 'bfloat16', not 'float32'" in capsys.readouterr().err
    assert main([*words, "bfloat"]) == 2 and "did you mean 'bfloat16'" in capsys.readouterr().err


def test_where_memory_runs_out_a_smaller_batch_is_taken(sampler, monkeypatch, capsys):
    own = Sampler(sampler.backbone, sampler.pipeline, 8)
    real = harvest._values

    def scarce(sampler, sites, prompts, seeds):
        if len(prompts) > 2:
            raise torch.OutOfMemoryError("too much")
        return real(sampler, sites, prompts, seeds)

    monkeypatch.setattr(harvest, "_values", scarce)
    chunks = list(stream(own, BLOCKS, PROMPTS[:5], seed=70))
    assert [len(chunk["up.0.0"]) for chunk in chunks] == [128, 128, 64] and own.batch_size == 2
    assert "going on with batches of 2" in capsys.readouterr().err
    assert gathered(chunks)["up.0.0"].prompt.unique().tolist() == [0, 1, 2, 3, 4]
