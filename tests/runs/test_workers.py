"""Engines that share weights, threads that fit, stopping politely, compiled parts: none of them changes a result."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import pandas as pd
import pytest
import torch
from sdxl_blocks import BLOCK_NAMES

from baselines.neurons import Neurons
from baselines.sae import SAE
from riebench.backbones.family import Site
from riebench.backbones.table import BACKBONES
from riebench.core import interrupts, threads
from riebench.core.errors import UserError
from riebench.core.pictures import eight_bits, from_array, regions_from_array, regions_to_array, to_array
from riebench.edits.edit import load_edits
from riebench.generation.compiling import compile_parts
from riebench.generation.interventions import Intervention
from riebench.generation.sampler import Request, load_sampler
from riebench.runs import local as workers
from riebench.runs.engine import Engine
from riebench.runs.plan import Variant, plan, plan_variants
from riebench.runs.reference import Generation
from riebench.runs.scoring import Scorer
from riebench.runs.setup import Setup

BACKBONE = BACKBONES.get("tinyworld-turbo@1")
OPTIONS = {"batch_size": 4}


def groups_of(methods, size=2, count=6):
    cases = [(edit, 42) for edit in load_edits()[::90]][:count]
    tasks = plan(BACKBONE, cases, plan_variants(methods, "", BACKBONE.blocks), Setup())
    return [tasks[start : start + size] for start in range(0, len(tasks), size)]


def made(groups, cores, monkeypatch):
    """(Recipe -> row, path -> picture) of all batches, with so many cores free."""
    monkeypatch.setattr(workers, "usable_cores", lambda: cores)
    batches = list(workers.work_here(groups, "scoring", BACKBONE, "cpu", OPTIONS))
    rows = {row["recipe"]: row for batch in batches for row in batch.rows if "method" in row}
    return rows, {path: array for batch in batches for path, array in batch.pictures.items()}


@pytest.mark.slow
def test_two_engines_make_what_one_makes(monkeypatch):
    before = torch.get_num_threads()
    groups = groups_of([SAE(), Neurons()])
    one, one_shown = made(groups, 1, monkeypatch)
    two, two_shown = made(groups, 2, monkeypatch)
    assert torch.get_num_threads() == before
    assert len(one) == sum(len(task.wanted) for group in groups for task in group) == 12
    frames = (pd.DataFrame.from_dict(rows, orient="index").sort_index() for rows in (one, two))
    pd.testing.assert_frame_equal(*frames, check_exact=True)
    assert one_shown.keys() == two_shown.keys() and all((one_shown[p] == two_shown[p]).all() for p in one_shown)


def test_an_engine_s_twin_has_the_same_weights_in_the_same_place_and_its_own_hooks(sampler):
    twin = sampler.twin()
    pairs = zip(sampler.denoiser.named_parameters(), twin.denoiser.named_parameters(), strict=True)
    for (name, mine), (_, other) in pairs:
        assert mine.data_ptr() == other.data_ptr(), name
    seen = []
    handle = sampler.denoiser.register_forward_hook(lambda *_: seen.append(1))
    image = twin.generate([Request("a red circle", 3)])[0].image
    handle.remove()
    assert not seen and torch.equal(image, sampler.generate([Request("a red circle", 3)])[0].image)


class Failing:
    name, strength, sites = "failing", 1.0, "update"

    def plan(self, case):
        if case.edit.id.startswith("change_pose"):
            raise RuntimeError("a bug in somebody's method")
        return Intervention()


@pytest.mark.slow
def test_an_error_in_one_engine_comes_out_and_ends_the_work(monkeypatch):
    with pytest.raises(RuntimeError, match="somebody's method"):
        made(groups_of([Failing()], size=1), 2, monkeypatch)


@pytest.mark.slow
def test_groups_are_taken_one_by_one_and_what_was_taken_is_finished(monkeypatch):
    taken = []

    def until_stopped():
        for group in groups_of([SAE()], size=1):
            if len(taken) == 3:
                return
            taken.append(group)
            yield group

    rows, _ = made(until_stopped(), 2, monkeypatch)
    assert len(rows) == len(taken) == 3


# ---------------------------------------------------------------- threads


def test_threads_are_as_many_as_cores_are_idle(monkeypatch):
    monkeypatch.setattr(threads, "machine_cores", lambda: 8)
    monkeypatch.setattr(threads.psutil.Process, "cpu_affinity", lambda self: [0, 1, 2, 3], raising=False)
    monkeypatch.setattr(threads.psutil, "cpu_percent", lambda interval, percpu: [3.0, 99.0, 10.0, 0.0, 0.0, 0.0])
    assert threads.count_free_cores() == 3  # core 1 is busy, 4 and 5 are not ours
    monkeypatch.setattr(threads.psutil, "cpu_percent", lambda interval, percpu: [100.0] * 6)
    assert threads.count_free_cores() == 1


@pytest.mark.process
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system does not bind processes to cores")
@pytest.mark.parametrize(("setting", "expected"), [({"OMP_NUM_THREADS": "2"}, 2), ({}, 1)])
def test_a_process_on_one_core_takes_one_thread_unless_it_is_told_otherwise(setting, expected):
    code = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "from riebench.core.threads import usable_cores; print(usable_cores())"
    )
    env = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"} | setting
    found = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert int(found.stdout) == expected


# ---------------------------------------------------------------- stopping


@pytest.mark.process
def test_the_first_signal_is_a_wish_and_the_second_an_end(capsys):
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), interrupts.stopping() as wish:
        assert not wish.stop
        signal.raise_signal(signal.SIGINT)
        assert wish.stop and "finishing the batch" in capsys.readouterr().err
        signal.raise_signal(signal.SIGTERM)
        pytest.fail("the second signal was not heard")
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.process
def test_outside_the_main_thread_signals_are_left_alone():
    before, wishes = signal.getsignal(signal.SIGINT), []

    def elsewhere():
        with interrupts.stopping() as wish:
            wishes.append((wish.stop, signal.getsignal(signal.SIGINT) is before))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert wishes == [(False, True)]


# ---------------------------------------------------------------- compiled parts


@pytest.mark.slow
def test_compiled_parts_leave_tracing_editing_and_replay_as_they_are(engine):
    """With a compiler that does not change the arithmetic; what a real one makes of it is in docs/performance.md."""
    sampler = load_sampler(BACKBONE, torch.device("cpu"), engine.sampler.batch_size)
    compiled = Engine(Generation(sampler, engine.setup))
    calls = []

    def backend(graph, _inputs):
        return lambda *args: calls.append(1) or graph.forward(*args)

    compile_parts(BACKBONE.family, compiled.sampler.pipeline, backend=backend)
    edit = load_edits()[0]
    variants = [Variant(SAE(), ("up.0.1",)), Variant(Neurons(), BLOCK_NAMES)]
    for method in (SAE(), Neurons()):
        expected, found = (
            list(each.results([(each.references([(edit, 42)], [method])[0], variants)])) for each in (engine, compiled)
        )
        assert calls
        for a, b in zip(expected, found, strict=True):
            assert a.row["status"] == b.row["status"]
            if a.image is not None:
                assert torch.equal(a.image, b.image)


# ---------------------------------------------------------------- pictures and scores


def test_what_is_scored_is_what_is_written():
    image = torch.rand(3, 8, 9)
    shown = eight_bits(image)
    assert (shown - image).abs().max() <= 0.5 / 255 + 1e-6
    assert to_array(shown).shape == (8, 9, 3) and torch.equal(from_array(to_array(shown)), shown)
    regions = torch.rand(2, 5, 6) < 0.5
    assert torch.equal(regions_from_array(regions_to_array(regions)), regions)


def assert_equal(scores, expected):
    pd.testing.assert_frame_equal(pd.DataFrame(scores), pd.DataFrame(expected), check_exact=True)


@pytest.mark.slow
def test_scores_do_not_depend_on_how_many_are_scored_at_once(engine, monkeypatch, capsys):
    references = engine.references([(edit, 42) for edit in load_edits()[:300:60]])
    rows = [(r.case.edit, r.pictures, r.pictures.edited) for r in references]
    together = engine.scorer.score(rows)
    apart = Scorer("tinyworld", "cpu")
    assert_equal([apart.score([row])[0] for row in reversed(rows)][::-1], together)
    whole = apart._score

    def cramped(rows, digests, size):
        if size > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(rows, digests, size)

    monkeypatch.setattr(apart, "_score", cramped)
    assert_equal(apart.score(rows), together)
    assert "scoring: out of memory" in capsys.readouterr().err


def test_an_edited_prompt_with_additions_is_refused():
    with pytest.raises(UserError, match="adds nothing"):
        Intervention({Site("mid.0"): torch.zeros(1, 4, 2)}, prompt="edited")
