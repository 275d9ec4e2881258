"""A run cannot be killed for good, and takes from its folder what is right and nothing else."""

from __future__ import annotations

import dataclasses
import errno
import functools
import hashlib
import importlib
import io
import json
import os
import random
import secrets
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from conftest import SETTINGS
from forked import CONTEXT, start
from PIL import Image

from baselines.dense import Dense
from riebench.cli import main
from riebench.core.errors import UserError
from riebench.core.interrupts import Interrupted
from riebench.generation import sampler
from riebench.generation.interventions import Intervention
from riebench.runs import plan
from riebench.runs import run as runs
from riebench.runs.config import MethodConfig, RunConfig, read_config
from riebench.runs.engine import Engine
from riebench.runs.run import CACHE_MODES, Run, run
from riebench.runs.scoring import Scorer
from riebench.runs.store import PENDING, WRITER, Batch, Store

# what it runs takes a while, or the run that all its tests look at
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("no_tables")]

KILLS = 20
PATIENCE = 60.0  # seconds until something that is waited for has failed to come
PER_CASE = 3 + 3  # every subset of two blocks, and three more methods
WHOLE, WIDE, MANY = 2 * PER_CASE, 4 * PER_CASE, 18 * PER_CASE  # results of the runs that are compared with


def config_of(**changes) -> RunConfig:
    settings = read_config(SETTINGS)
    methods = tuple(method for method in settings.methods if method.name not in ("dense", "neurons"))
    small = {"categories": ("change_colour", "add_object"), "edits_per_category": 1, "seeds": (42,), "methods": methods}
    small |= {"blocks": ("mid.0", "up.0.1"), "resamples": 50, "batch_size": 4}
    return dataclasses.replace(settings, **small | changes)


def with_one_more(config: RunConfig, name: str) -> RunConfig:
    return dataclasses.replace(config, methods=(*config.methods, MethodConfig(name)))


def wide_config() -> RunConfig:
    return config_of(seeds=(42, 7))


def many_config() -> RunConfig:
    """Batches enough that twenty killed processes do not come to their end."""
    return config_of(seeds=tuple(range(9)))


@pytest.fixture(scope="module", autouse=True)
def one_thread(no_tables):
    """Sums differ in their last bits between one thread and two, and here every bit is compared. The weights of the
    backbone are read once for all runs of this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        patch.setattr(sampler, "load_pipeline", functools.cache(sampler.load_pipeline))
        yield
        torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def as_before():
    """Leaves no disturbance, and no second engine, to the next test."""
    yield
    disturbances.clear()
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, one_thread) -> Path:
    """Two cases, never disturbed."""
    return run(config_of(), tmp_path_factory.mktemp("undisturbed") / "whole", device="cpu").folder


@pytest.fixture(scope="module")
def wide(tmp_path_factory, one_thread) -> Path:
    """The same two edits with two seeds, never disturbed."""
    return run(wide_config(), tmp_path_factory.mktemp("undisturbed") / "wide", device="cpu").folder


@pytest.fixture(scope="module")
def many(tmp_path_factory, one_thread) -> Path:
    """The same two edits with nine seeds, never disturbed."""
    return run(many_config(), tmp_path_factory.mktemp("undisturbed") / "many", device="cpu").folder


@pytest.fixture
def folder(whole, tmp_path) -> Path:
    """A copy of the finished run, to be spoilt."""
    return shutil.copytree(whole, tmp_path / "run")


def refuse_engines(monkeypatch) -> None:
    def refuse(*_args, **_options):
        raise AssertionError("an engine was opened, where everything is there")

    monkeypatch.setattr(Engine, "__init__", refuse)


@pytest.fixture
def nothing_to_generate(monkeypatch):
    refuse_engines(monkeypatch)


def scores_of(folder: Path) -> pd.DataFrame:
    return pd.read_parquet(folder / "scores.parquet")


def manifest_of(folder: Path) -> dict:
    return json.loads((folder / "manifest.json").read_text())


def assert_same(folder: Path, undisturbed: Path, without=()) -> None:
    """Equal scores, bit for bit and row for row, keys and names of pictures included."""
    found, expected = (scores_of(path).drop(columns=list(without)) for path in (folder, undisturbed))
    pd.testing.assert_frame_equal(found, expected, check_exact=True)


def parts(folder: Path) -> list[Path]:
    return sorted(path for path in (folder / "parts").glob("*.parquet") if not path.name.startswith("."))


def rows_on_disk(folder: Path) -> pd.DataFrame:
    """Every row of a result in any part, also those that a later one replaced. Every part can be read, and every
    picture is there and is the row's."""
    frames = [pd.read_parquet(path) for path in parts(folder)]
    for row in (row for frame in frames for row in frame.itertuples()):
        picture = (folder / row.image).read_bytes()
        assert hashlib.sha256(picture).hexdigest() == row.image_sha256, row.image
    results = [frame[frame.method.notna()] for frame in frames if "method" in frame]  # others are of shared pictures
    return pd.concat(results) if results else pd.DataFrame({"recipe": []})


def results_on_disk(folder: Path) -> set[str]:
    """Recipes of the results that are there."""
    return set(rows_on_disk(folder).recipe)


def files_in(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def unfinished(folder: Path) -> list[Path]:
    """What `files.replacing` has begun to write and not renamed."""
    return [path for path in folder.rglob(".*.*") if path.is_file()]


def wait_until(happens, alive=lambda: True) -> None:
    """Waits until something happens; also ends when nothing is alive that could make it happen."""
    last = time.monotonic() + PATIENCE
    while alive() and not happens():
        assert time.monotonic() < last, "waited in vain"
        time.sleep(0.005)


def write_config(config: RunConfig, path: Path) -> Path:
    values = dataclasses.asdict(config) | {
        "methods": [{"name": method.name, **method.settings} for method in config.methods],
        "categories": list(config.categories),
        "seeds": list(config.seeds),
    }
    path.write_text(yaml.safe_dump(values))
    return path


def go_on(config: RunConfig, out: Path, log: Path, engines: int) -> None:
    """What another process does: the same command, in small groups, which bring the first part sooner."""
    sys.stderr = log.open("a")
    torch.set_num_threads(engines)
    runs.GROUP = 1
    run(config, out, device="cpu")


def in_another_process(config: RunConfig, out: Path, engines: int = 1) -> CONTEXT.Process:
    return start(go_on, config, out, out.with_suffix(".log"), engines)


def command(words: list[str], log: Path) -> None:
    """What another process does: a command, and it exits as the command line does."""
    sys.stdout = sys.stderr = log.open("a")
    sys.exit(main(words))


# Killing


@pytest.mark.process
def test_killed_at_twenty_random_moments_it_ends_with_the_scores_of_an_undisturbed_run(tmp_path, many):
    seed = secrets.randbelow(10**6)
    print(f"seed {seed}")
    moments = random.Random(seed)
    killed, history = tmp_path / "killed", [set()]
    for number in range(KILLS):
        there = len(parts(killed))
        process = in_another_process(many_config(), killed, engines=2 if number in (5, 15) else 1)
        if moments.random() < 0.3:
            time.sleep(moments.uniform(0, 0.5))  # while it starts
        else:
            wanted = there + moments.randint(1, 2)
            wait_until(lambda wanted=wanted: len(parts(killed)) >= wanted, process.is_alive)
            time.sleep(moments.uniform(0, 0.05))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL, "it was not killed, it ended"
        history.append(results_on_disk(killed))
        assert history[-1] >= history[-2], "results that were there are gone"
    assert 0 < len(history[-1]) < MANY
    done = run(many_config(), killed, device="cpu")
    assert done.manifest["made"] == MANY - len(history[-1])
    assert_same(killed, many)
    log = killed.with_suffix(".log").read_text()
    assert "made again" not in log and "Error" not in log  # nothing that was left behind was broken


def test_no_more_than_a_few_batches_can_be_lost(tmp_path, monkeypatch):
    """Counted where two engines score their batches: how many were made before and are not on disk."""
    monkeypatch.setattr(runs, "GROUP", 2)
    torch.set_num_threads(engines := 2)
    true, made, lacking = Scorer.score, [], []

    def score(scorer, rows, digests=()):
        lacking.append(len(made) - len(parts(tmp_path)))
        found = true(scorer, rows, digests)
        made.append(len(rows))
        return found

    monkeypatch.setattr(Scorer, "score", score)
    run(wide_config(), tmp_path, device="cpu")
    assert sum(made) == WIDE and max(lacking) <= PENDING + engines


@pytest.mark.parametrize("room", ["parts", "images/add_object-00/42", "."])
def test_what_a_killed_process_had_begun_to_write_is_no_result_and_is_swept_away(folder, whole, room, capsys):
    for path in [path for path in (folder / room).iterdir() if path.is_file() and path.suffix]:
        # named as `files.replacing` names it, and half written
        handle, _ = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix)
        os.write(handle, path.read_bytes()[:100])
        os.close(handle)
    assert len(unfinished(folder)) >= 4
    assert run(config_of(), folder, device="cpu").manifest["made"] == 0
    assert_same(folder, whole)
    assert "made again" not in capsys.readouterr().err
    assert not unfinished(folder) and not list((folder / "parts").glob("*.damaged"))


def test_killed_over_its_very_first_part_it_goes_on(tmp_path, whole):
    with Store(tmp_path):  # the folder is the tool's own before anything is written
        pass
    (tmp_path / "parts").mkdir(exist_ok=True)
    (tmp_path / "parts" / ".000000000-0a1b2c3d.parquet.k3j_x1.parquet").write_bytes(b"PAR1")
    run(config_of(), tmp_path, device="cpu")
    assert_same(tmp_path, whole)


def test_a_file_of_somebody_elses_among_the_parts_is_left_alone(folder, whole):
    shutil.copyfile(parts(folder)[0], folder / "parts" / "my notes.parquet")
    assert run(config_of(), folder, device="cpu").manifest["made"] == 0
    assert_same(folder, whole)


# Stopping


@pytest.mark.process
def test_after_ctrl_c_the_same_command_goes_on(tmp_path, many, capsys):
    out = tmp_path / "run"
    words = ["run", str(write_config(many_config(), tmp_path / "mine.yaml")), "--out", str(out), "--device", "cpu"]
    process = start(command, words, tmp_path / "log")
    wait_until(lambda: parts(out), process.is_alive)
    os.kill(process.pid, signal.SIGINT)
    process.join(PATIENCE)
    errors = (tmp_path / "log").read_text()
    assert process.exitcode == 130 and "Traceback" not in errors
    there = len(results_on_disk(out))
    assert 0 < there < MANY and not unfinished(out)
    assert errors.strip().splitlines()[-1] == (
        f"riebench: stopped with {there} of {MANY} results in {out}; the same command goes on from there"
    )
    assert manifest_of(out)["status"] == "interrupted"

    assert main(words) == 0
    assert f"{MANY} results" in capsys.readouterr().out
    assert manifest_of(out)["status"] == "finished" and manifest_of(out)["made"] == MANY - there
    assert_same(out, many)


disturbances: dict[str, Callable[[], None]] = {}  # category -> what happens once while its edits are planned


class Disturbed:
    """Does nothing to the image; while it is asked for a plan, what is among the disturbances happens."""

    name, strength, sites = "disturbed", 1.0, ""

    def plan(self, case) -> Intervention:
        disturbances.pop(case.edit.category, bool)()
        return Intervention()


def disturbed_run(folder: Path, **options) -> Run:
    return run(config_of(), folder, device="cpu", methods=[Disturbed()], **options)


def assert_same_apart_from_disturbed(folder: Path, undisturbed: Path) -> None:
    rows = scores_of(folder)
    others = rows[rows.method != "disturbed"].reset_index(drop=True)
    pd.testing.assert_frame_equal(others, scores_of(undisturbed), check_exact=True)


def send(*numbers: signal.Signals) -> None:
    for number in numbers:
        os.kill(os.getpid(), number)


@pytest.mark.process
@pytest.mark.parametrize(("number", "engines"), [(signal.SIGTERM, 1), (signal.SIGINT, 2)])
def test_a_signal_stops_a_run_with_everything_on_disk(tmp_path, whole, monkeypatch, number, engines, capsys):
    """And however many engines go on with it, every bit is as if it had not been stopped."""
    monkeypatch.setattr(runs, "GROUP", 1)
    handler = signal.getsignal(number)
    disturbances["add_object"] = lambda: send(number)
    with pytest.raises(Interrupted) as stopped:
        disturbed_run(tmp_path)
    there = len(results_on_disk(tmp_path))
    assert 0 < there < WHOLE + 2 and str(stopped.value) == (
        f"stopped with {there} of {WHOLE + 2} results in {tmp_path}; the same command goes on from there"
    )
    assert "once more to stop at once" in capsys.readouterr().err
    assert manifest_of(tmp_path)["status"] == "interrupted" and signal.getsignal(number) is handler
    torch.set_num_threads(engines)
    assert disturbed_run(tmp_path).manifest["made"] == WHOLE + 2 - there
    assert_same_apart_from_disturbed(tmp_path, whole)


@pytest.mark.process
def test_a_signal_waits_for_one_batch_and_no_longer(tmp_path):
    disturbances["add_object"] = lambda: send(signal.SIGINT)
    with pytest.raises(Interrupted, match=f"stopped with 4 of {WHOLE + 2} results"):
        disturbed_run(tmp_path)


@pytest.mark.process
@pytest.mark.parametrize("engines", [1, 2])
def test_two_signals_stop_at_once(tmp_path, whole, monkeypatch, engines):
    torch.set_num_threads(engines)
    disturbances["add_object"] = lambda: send(signal.SIGINT, signal.SIGTERM)
    true, scored = Scorer.score, []
    with monkeypatch.context() as patch:
        patch.setattr(runs, "GROUP", 1)
        patch.setattr(Scorer, "score", lambda scorer, rows: scored.append(len(rows)) or true(scorer, rows))
        with pytest.raises(KeyboardInterrupt) as stopped:
            disturbed_run(tmp_path)
    assert not isinstance(stopped.value, Interrupted) and manifest_of(tmp_path)["status"] == "running"
    there = len(results_on_disk(tmp_path))
    assert disturbed_run(tmp_path).manifest["made"] == WHOLE + 2 - there
    assert_same_apart_from_disturbed(tmp_path, whole)
    assert len(scored) <= 2 * engines  # batches that were in hand


@pytest.mark.process
def test_stopping_a_run_that_takes_nothing_does_not_promise_to_go_on(folder, monkeypatch):
    """The same command with --cache never begins from the beginning."""
    monkeypatch.setattr(runs, "GROUP", 1)
    disturbances["add_object"] = lambda: send(signal.SIGINT)
    with pytest.raises(Interrupted) as stopped:
        disturbed_run(folder, cache="never")
    assert "the same command goes on" not in str(stopped.value)


@pytest.mark.process
def test_a_second_process_refuses_and_spoils_nothing(tmp_path, whole, capsys):
    out = tmp_path / "run"
    first = in_another_process(config_of(), out)
    wait_until(lambda: parts(out), first.is_alive)
    os.kill(first.pid, signal.SIGSTOP)
    try:
        before = files_in(out)
        words = ["run", write_config(config_of(), tmp_path / "mine.yaml"), "--out", out, "--device", "cpu"]
        assert main([str(word) for word in words]) == 2
        message = capsys.readouterr().err.strip()
        assert f"another riebench (process {first.pid} on " in message and f"is writing to {out}" in message
        assert "\n" not in message
        assert files_in(out) == before
    finally:
        os.kill(first.pid, signal.SIGCONT)
    first.join()
    assert first.exitcode == 0
    assert_same(out, whole)


# Damage


def a_picture(folder: Path) -> Path:
    return next(folder.glob("images/add_object-00/42/sae@1-mid.0-*.png"))


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def fill_with_garbage(path: Path) -> None:
    path.write_bytes(b"this is no such file" * 50)


def replace_by_another(path: Path) -> None:
    other = next(path.parent.glob("sae@1-up.0.1-*.png"))
    assert other.read_bytes() != path.read_bytes()
    shutil.copyfile(other, path)


PICTURE_DAMAGE = [cut_short, fill_with_garbage, replace_by_another, Path.unlink]
PART_DAMAGE = [cut_short, fill_with_garbage, Path.unlink]


@pytest.mark.parametrize("spoil", PICTURE_DAMAGE)
def test_a_spoilt_picture_is_named_and_made_again_alone(folder, whole, spoil, capsys):
    path = a_picture(folder)
    spoil(path)
    done = run(config_of(), folder, device="cpu")
    assert f"{path} {'is missing' if spoil is Path.unlink else 'has changed'}" in capsys.readouterr().err
    assert done.manifest["made"] == 1 and path.read_bytes() == (whole / path.relative_to(folder)).read_bytes()
    assert_same(folder, whole)
    assert run(config_of(), folder, device="cpu").manifest["made"] == 0
    assert "made again" not in capsys.readouterr().err


@pytest.mark.parametrize("spoil", PART_DAMAGE)
def test_a_spoilt_part_is_named_and_its_results_are_made_again(folder, whole, spoil, capsys):
    path = parts(folder)[3]
    rows = len(pd.read_parquet(path))
    spoil(path)
    done = run(config_of(), folder, device="cpu")
    assert (f"{path} is not as it was written" in capsys.readouterr().err) == (spoil is not Path.unlink)
    assert done.manifest["made"] == rows == 4
    assert_same(folder, whole)
    assert run(config_of(), folder, device="cpu").manifest["made"] == 0
    assert "made again" not in capsys.readouterr().err


@pytest.mark.parametrize("name", ["original", "edited", "regions"])
def test_a_spoilt_reference_picture_is_named_and_made_again(folder, whole, name, capsys):
    path = next(folder.glob(f"images/add_object-00/42/{name}-*.png"))
    showing = (scores_of(folder).image == str(path.relative_to(folder))).sum()
    cut_short(path)
    assert run(config_of(), folder, device="cpu").manifest["made"] == showing
    assert str(path) in capsys.readouterr().err
    assert_same(folder, whole)
    assert path.read_bytes() == (whole / path.relative_to(folder)).read_bytes()
    run(config_of(), folder, device="cpu")
    assert "made again" not in capsys.readouterr().err


def test_a_single_flipped_bit_in_a_part_is_never_believed(folder):
    """As a failing disk leaves it: the rows that are still taken are right, and the directory can be opened."""
    path, *others = parts(folder)
    for other in others:
        other.unlink()
    good, wrong, places = path.read_bytes(), {}, random.Random(7)
    expected = pd.read_parquet(path).set_index("recipe")
    for _ in range(100):
        place, bit = places.randrange(len(good)), places.randrange(8)
        bad = bytearray(good)
        bad[place] ^= 1 << bit
        path.write_bytes(bad)
        try:
            with Store(folder) as store:
                found = [row for row in map(store.row, expected.index) if row is not None]
            if found:
                found = pd.DataFrame(found).set_index("recipe")
                pd.testing.assert_frame_equal(found, expected.loc[found.index], check_exact=True)
        except Exception as error:
            wrong[place, bit] = f"{type(error).__name__}: {' '.join(str(error).split())[:80]}"
        path.with_name(f"{path.name}.damaged").unlink(missing_ok=True)
    assert not wrong, f"{len(wrong)} of 100, among them {list(wrong.items())[:5]}"


def fill_the_disk(monkeypatch, what: str, is_meant) -> None:
    """From now on the disk is full for the files that are meant, when they are flushed or renamed."""
    true = getattr(os, what)

    def full(*arguments):
        path = Path(os.readlink(f"/proc/self/fd/{arguments[0]}") if what == "fsync" else arguments[1])
        if is_meant(path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return true(*arguments)

    monkeypatch.setattr(os, what, full)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="which file is flushed cannot be seen")
@pytest.mark.parametrize("what", ["replace", "fsync"])
def test_a_disk_that_fills_in_the_middle_is_named_and_the_next_run_goes_on(tmp_path, whole, monkeypatch, what):
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        fill_the_disk(patch, what, lambda path: path.parent.name == "parts" and len(parts(out)) >= 3)
        with pytest.raises(UserError, match=f"cannot write {out}/parts/.*: No space left on device -> "):
            run(config_of(), out, device="cpu")
    there = len(results_on_disk(out))
    assert 0 < there <= 12 and not unfinished(out)
    assert run(config_of(), out, device="cpu").manifest["made"] == WHOLE - there
    assert_same(out, whole)


@pytest.mark.parametrize("name", ["manifest.json", "scores.parquet", "summary.json", "report.html"])
def test_a_disk_too_full_for_the_tables_loses_no_result(folder, whole, monkeypatch, nothing_to_generate, name):
    (folder / name).unlink()
    with monkeypatch.context() as patch:
        fill_the_disk(patch, "replace", lambda path: path.name == name)
        with pytest.raises(UserError, match=f"cannot write {folder / name}: No space left"):
            run(config_of(), folder, device="cpu")
    assert not unfinished(folder)
    assert run(config_of(), folder, device="cpu").manifest["made"] == 0
    assert_same(folder, whole)
    assert (folder / name).stat().st_size > 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_disk_that_is_full_from_the_beginning_is_a_user_error_if_anything(folder, whole):
    note = folder / WRITER
    note.unlink()
    note.symlink_to("/dev/full")
    with suppress(UserError):
        run(config_of(), folder, device="cpu")
    note.unlink()
    assert run(config_of(), folder, device="cpu").manifest["made"] == 0
    assert_same(folder, whole)


# Vanishing


def move_away(folder: Path) -> None:
    folder.rename(folder.with_name("elsewhere"))


@pytest.mark.parametrize("vanish", [move_away, shutil.rmtree])
def test_a_folder_that_vanishes_is_named_and_not_made_anew_with_half_of_a_run(tmp_path, whole, monkeypatch, vanish):
    out = tmp_path / "run"
    monkeypatch.setattr(runs, "GROUP", 1)  # the second case is planned when the first is on disk

    def vanish_after_the_references() -> None:
        wait_until(lambda: len(list(out.glob("images/change_colour-00/42/[!.]*.png"))) == 3)
        vanish(out)

    disturbances["change_colour"] = vanish_after_the_references
    with pytest.raises(UserError, match=f"the run directory {out} has vanished"):
        disturbed_run(out)
    assert not out.exists()
    there = 0
    if vanish is move_away:
        out.with_name("elsewhere").rename(out)
        there = len(results_on_disk(out))
        assert there == PER_CASE + 1
    assert disturbed_run(out).manifest["made"] == WHOLE + 2 - there
    assert_same_apart_from_disturbed(out, whole)


def test_a_folder_that_vanishes_over_a_batch_is_not_made_anew(tmp_path, monkeypatch):
    """Two threads write the pictures of a batch; one finds no folder, and the other must not make it."""
    out = tmp_path / "run"
    true = os.replace

    def replace(source, target):
        if Path(target).suffix == ".png" and len(parts(out)) >= 2:
            with suppress(FileNotFoundError):
                move_away(out)
        return true(source, target)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(UserError, match=str(out)):
        run(config_of(), out, device="cpu")
    assert not out.exists()


def test_a_folder_that_vanishes_before_the_tables_is_not_made_anew(folder, monkeypatch):
    true = runs.summarise

    def vanish_and_summarise(*args, **options):
        move_away(folder)
        return true(*args, **options)

    monkeypatch.setattr(runs, "summarise", vanish_and_summarise)
    with pytest.raises(UserError, match=f"the run directory {folder} has vanished"):
        run(config_of(), folder, device="cpu")
    assert not folder.exists()


# Taking what is there


def test_the_same_command_twice_makes_nothing(folder, whole, nothing_to_generate):
    before = {name: data for name, data in files_in(folder).items() if name.startswith(("parts", "images"))}
    done = run(config_of(), folder, device="cpu")
    assert done.manifest["made"] == 0 and done.manifest["results"] == WHOLE
    assert_same(folder, whole)
    assert {name: data for name, data in files_in(folder).items() if name.startswith(("parts", "images"))} == before


def test_further_seeds_make_only_their_own_results(folder, wide):
    assert run(wide_config(), folder, device="cpu").manifest["made"] == WIDE - WHOLE
    assert_same(folder, wide)


def test_a_further_method_makes_only_its_own_results(folder, whole):
    assert run(with_one_more(config_of(), "dense"), folder, device="cpu").manifest["made"] == 2
    rows = scores_of(folder)
    assert (rows.method == "dense").sum() == 2
    pd.testing.assert_frame_equal(
        rows[rows.method != "dense"].reset_index(drop=True), scores_of(whole), check_exact=True
    )


def test_further_edits_make_only_their_own_results(folder, whole):
    done = run(config_of(edits_per_category=2), folder, device="cpu")
    assert done.manifest["made"] == WHOLE and done.manifest["results"] == 2 * WHOLE
    rows = scores_of(folder)
    old = rows[rows.edit.isin(scores_of(whole).edit)].reset_index(drop=True)
    pd.testing.assert_frame_equal(old, scores_of(whole), check_exact=True)


def test_another_batch_size_in_a_wider_command_spoils_nothing_that_is_there(folder, capsys):
    """References are then made a second time, and between batch sizes a pixel can differ by one."""
    config = with_one_more(config_of(batch_size=16), "dense")
    assert run(config, folder, device="cpu").manifest["made"] == 2
    assert run(config, folder, device="cpu").manifest["made"] == 0
    assert "made again" not in capsys.readouterr().err


def test_a_narrower_command_gives_the_rows_that_it_asks_for(folder, whole, nothing_to_generate):
    before = results_on_disk(folder)
    done = run(config_of(categories=("add_object",)), folder, device="cpu")
    assert done.manifest["made"] == 0 and results_on_disk(folder) == before
    expected = scores_of(whole)
    expected = expected[expected.category == "add_object"].reset_index(drop=True)
    pd.testing.assert_frame_equal(scores_of(folder), expected, check_exact=True)
    run(config_of(), folder, device="cpu")
    assert_same(folder, whole)


def test_a_changed_setting_makes_the_methods_rows_anew_and_keeps_the_old(folder, whole, monkeypatch):
    methods = [MethodConfig("random", {"k": 8}) if m.name == "random" else m for m in config_of().methods]
    other = config_of(methods=tuple(methods))
    assert run(other, folder, device="cpu").manifest["made"] == 2
    changed = scores_of(folder)
    picked = changed[changed.method == "random"].num_features
    assert (picked < scores_of(whole).query("method == 'random'").num_features.min()).all()
    assert len(results_on_disk(folder)) == WHOLE + 2
    refuse_engines(monkeypatch)
    run(config_of(), folder, device="cpu")
    assert_same(folder, whole)
    run(other, folder, device="cpu")
    pd.testing.assert_frame_equal(scores_of(folder), changed, check_exact=True)


def test_what_another_version_of_the_code_made_is_taken_only_when_asked(folder, whole, monkeypatch):
    monkeypatch.setattr(plan, "code_version", lambda: "another")
    with monkeypatch.context() as patch:
        refuse_engines(patch)
        assert run(config_of(), folder, device="cpu", cache="always").manifest["made"] == 0
    assert_same(folder, whole)
    assert run(config_of(), folder, device="cpu").manifest["made"] == WHOLE
    assert_same(folder, whole, without=["code", "image", "original", "edited", "regions"])
    assert set(scores_of(folder).code).isdisjoint(scores_of(whole).code)
    assert run(config_of(), folder, device="cpu").manifest["made"] == 0


def test_what_another_version_of_the_code_made_can_be_widened(folder, whole, monkeypatch):
    monkeypatch.setattr(plan, "code_version", lambda: "another")
    assert disturbed_run(folder, cache="always").manifest["made"] == 2  # these show the original image
    assert_same_apart_from_disturbed(folder, whole)
    assert len(results_on_disk(folder)) == WHOLE + 2


def test_never_makes_everything_again(folder, whole):
    assert run(config_of(), folder, device="cpu", cache="never").manifest["made"] == WHOLE
    assert_same(folder, whole)
    assert len(rows_on_disk(folder)) == 2 * WHOLE


def test_only_cache_makes_nothing_or_says_how_much_is_missing(folder, whole, nothing_to_generate):
    assert run(config_of(), folder, device="cpu", cache="only-cache").manifest["made"] == 0
    assert_same(folder, whole)
    before = (folder / "scores.parquet").read_bytes()
    parts(folder)[2].unlink()
    with pytest.raises(UserError, match=f"4 of {WHOLE} results are not in {folder}"):
        run(config_of(), folder, device="cpu", cache="only-cache")
    assert (folder / "scores.parquet").read_bytes() == before


def test_an_unknown_cache_mode_says_what_was_meant_and_touches_nothing(tmp_path):
    for wrong, meant in (("allways", "always"), ("only_cache", "only-cache"), ("only-mising", "only-missing")):
        assert meant in CACHE_MODES
        with pytest.raises(UserError, match=f"unknown cache mode {wrong!r}; did you mean {meant!r}"):
            run(config_of(), tmp_path / "run", device="cpu", cache=wrong)
    assert not (tmp_path / "run").exists()


# Scoring again


def test_another_version_of_the_judges_scores_again_and_generates_nothing(
    folder, whole, monkeypatch, nothing_to_generate
):
    wrong = dict.fromkeys(["clip_text_edited", "lpips_outside", "oracle_success"], 0.25)
    with Store(folder) as store:  # as an older metric left them
        store.add(Batch([store.row(recipe) | wrong for recipe in scores_of(whole).recipe], {}))
    monkeypatch.setattr(runs, "judge_version", lambda *_, **__: "other judges")
    done = run(config_of(), folder, device="cpu")
    assert done.manifest["made"] == 0 and done.manifest["scoring"] == "other judges"
    assert set(scores_of(folder).scoring) == {"other judges"}
    assert_same(folder, whole, without=["scoring"])
    monkeypatch.setattr(Scorer, "score", None)
    run(config_of(), folder, device="cpu")
    assert_same(folder, whole, without=["scoring"])


def test_a_reference_that_scoring_needs_and_that_is_gone_is_made_with_its_case(folder, whole, monkeypatch):
    next(folder.glob("images/add_object-00/42/regions-*.png")).unlink()
    monkeypatch.setattr(runs, "judge_version", lambda *_, **__: "other judges")
    assert run(config_of(), folder, device="cpu").manifest["made"] == PER_CASE
    assert_same(folder, whole, without=["scoring"])


def test_scoring_again_does_not_believe_another_region(folder, whole, monkeypatch, capsys):
    path = next(folder.glob("images/add_object-00/42/regions-*.png"))
    good = path.read_bytes()
    regions = np.asarray(Image.open(path))
    Image.fromarray(np.roll(regions, 20, axis=1)).save(path)
    monkeypatch.setattr(runs, "judge_version", lambda *_, **__: "other judges")
    run(config_of(), folder, device="cpu")
    assert_same(folder, whole, without=["scoring"])
    assert str(path) in capsys.readouterr().err and path.read_bytes() == good


# Merging


@pytest.fixture(scope="module")
def shards(tmp_path_factory, one_thread) -> list[Path]:
    """The cases of `whole`, made in two folders."""
    here = tmp_path_factory.mktemp("shards")
    kinds = ("change_colour", "add_object")
    return [run(config_of(categories=(kind,)), here / kind, device="cpu").folder for kind in kinds]


@pytest.fixture
def spoilt_shards(shards, tmp_path) -> list[Path]:
    """Copies of the shards, to be spoilt."""
    return [shutil.copytree(shard, tmp_path / shard.name) for shard in shards]


def test_shards_of_categories_become_the_whole_run(tmp_path, shards, whole, nothing_to_generate):
    before = [files_in(shard) for shard in shards]
    done = run(config_of(), tmp_path / "merged", device="cpu", reuse=shards)
    assert done.manifest["made"] == 0
    assert_same(tmp_path / "merged", whole)
    assert [files_in(shard) for shard in shards] == before  # they were only read
    assert len(results_on_disk(tmp_path / "merged")) == WHOLE
    run(config_of(), tmp_path / "merged", device="cpu")  # and are needed no longer
    assert_same(tmp_path / "merged", whole)


def test_shards_of_seeds_become_the_whole_run_and_what_is_in_none_is_made(tmp_path, whole, wide):
    out = tmp_path / "merged"
    assert run(wide_config(), out, device="cpu", reuse=[whole]).manifest["made"] == WIDE - WHOLE
    assert_same(out, wide)
    done = run(config_of(seeds=(7,)), tmp_path / "seven", device="cpu", reuse=[wide])
    assert done.manifest["made"] == 0
    assert run(wide_config(), tmp_path / "both", device="cpu", reuse=[whole, done.folder]).manifest["made"] == 0
    assert_same(tmp_path / "both", wide)


def test_the_command_line_merges_too(tmp_path, shards, whole, nothing_to_generate, capsys):
    words = ["run", write_config(config_of(), tmp_path / "mine.yaml"), "--out", tmp_path / "merged", "--device", "cpu"]
    words += [word for shard in shards for word in ("--reuse", shard)]
    assert main([str(word) for word in words]) == 0
    assert "(0 made now" in capsys.readouterr().out
    assert_same(tmp_path / "merged", whole)
    assert main([str(word) for word in [*words, "--cache", "nver"]]) == 2
    assert "did you mean 'never'" in capsys.readouterr().err
    assert main([str(word) for word in [*words, "--reuse", tmp_path / "nowhere"]]) == 2
    assert f"the run directory {tmp_path / 'nowhere'} does not exist" in capsys.readouterr().err


def test_what_is_spoilt_in_a_shard_is_named_and_made_in_the_merged_run(tmp_path, spoilt_shards, whole, capsys):
    picture, part = a_picture(spoilt_shards[1]), parts(spoilt_shards[0])[2]
    lost = len(pd.read_parquet(part))
    cut_short(picture)
    fill_with_garbage(part)
    before = [files_in(shard) for shard in spoilt_shards]
    done = run(config_of(), tmp_path / "merged", device="cpu", reuse=spoilt_shards)
    errors = capsys.readouterr().err
    assert str(picture) in errors and str(part) in errors
    assert lost > 0 and done.manifest["made"] == 1 + lost
    assert_same(tmp_path / "merged", whole)
    assert [files_in(shard) for shard in spoilt_shards] == before
    results_on_disk(tmp_path / "merged")


def test_what_a_killed_shard_had_begun_to_write_is_not_merged(tmp_path, spoilt_shards, whole):
    picture = a_picture(spoilt_shards[1])
    (picture.parent / f".{picture.name}.k3j_x1.png").write_bytes(picture.read_bytes()[:100])
    run(config_of(), tmp_path / "merged", device="cpu", reuse=spoilt_shards)
    assert_same(tmp_path / "merged", whole)
    assert not unfinished(tmp_path / "merged")


def test_a_picture_that_is_spoilt_here_is_mended_from_another_folder(folder, whole, nothing_to_generate, capsys):
    path = a_picture(folder)
    replace_by_another(path)
    run(config_of(), folder, device="cpu", reuse=[whole])
    assert str(path) in capsys.readouterr().err
    assert_same(folder, whole)
    assert path.read_bytes() == (whole / path.relative_to(folder)).read_bytes()
    run(config_of(), folder, device="cpu", reuse=[whole])
    assert "made again" not in capsys.readouterr().err


def test_a_folder_of_an_older_version_takes_newer_results_from_another(tmp_path, whole, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(plan, "code_version", lambda: "older")
        run(config_of(), tmp_path / "old", device="cpu")
    refuse_engines(monkeypatch)
    assert run(config_of(), tmp_path / "old", device="cpu", reuse=[whole]).manifest["made"] == 0
    assert_same(tmp_path / "old", whole)


# Methods of one's own


def one_case(**changes) -> RunConfig:
    """The smallest run: one case, without a method on subsets of the blocks."""
    methods = (MethodConfig("noop"), MethodConfig("dense"))
    return config_of(categories=("change_colour",), methods=methods, subsets_of="noop", **changes)


OWN = """
from baselines.dense import Dense

class Mine:
    name, strength, sites = "mine", {strength}, "update"

    def plan(self, case):
        return Dense(strength={strength}).plan(case)
"""


@dataclasses.dataclass
class Scaled:
    """A method with a setting of its own."""

    setting: object
    name: str = "scaled"
    strength: float = 1.0
    sites: str = "update"

    def plan(self, case) -> Intervention:
        return Dense().plan(case)


@pytest.mark.parametrize(
    "setting",
    [
        lambda x: 2 * x,
        functools.partial(pow, 2),
        io.StringIO("2"),
        random.Random(2),
        {"deep": [1, len]},
        float("nan"),
        pytest.param([], id="itself"),
    ],
    ids=lambda setting: type(setting).__name__,
)
def test_a_setting_without_content_is_a_user_error_naming_it(tmp_path, setting):
    """Two such settings could not be told apart, and one would be given the results of the other."""
    if setting == []:
        setting.append(setting)
    with pytest.raises(UserError, match=r"\['method'\]\.setting.* (is|holds) "):
        run(one_case(), tmp_path / "run", device="cpu", methods=[Scaled(setting)])
    assert not (tmp_path / "run").exists()


def test_a_setting_with_content_decides_what_is_made(tmp_path):
    made = []
    for setting in (1, 2, (torch.ones(3), np.zeros(2)), (torch.ones(3), np.ones(2)), Path("a"), {"b": [1.5, None]}, 2):
        made.append(run(one_case(), tmp_path, device="cpu", methods=[Scaled(setting)]).manifest["made"])
    assert made == [3, 1, 1, 1, 1, 1, 0]


@pytest.fixture
def own_method(tmp_path, monkeypatch):
    """A function that writes the file of a method with the strength that is given; the file's module is `mine`."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def write(strength: float) -> None:
        (tmp_path / "mine.py").write_text(OWN.format(strength=strength))

    yield write
    sys.modules.pop("mine", None)


def mine_of(folder: Path, module) -> tuple[int, float]:
    """(Results made, injected norm of the method in the file) of a run in a folder."""
    done = run(one_case(), folder, device="cpu", methods=[module.Mine()])
    return done.manifest["made"], done.scores.set_index("method").injected_norm["mine"]


def test_a_method_whose_file_has_changed_is_made_anew(tmp_path, own_method):
    own_method(1.0)
    module = importlib.import_module("mine")
    first, norm = mine_of(tmp_path / "run", module)
    assert first == 3
    assert mine_of(tmp_path / "run", module) == (0, norm)
    own_method(0.5)
    module = importlib.reload(module)
    made, halved = mine_of(tmp_path / "run", module)
    assert made == 1 and halved == pytest.approx(norm / 2)


def test_a_file_that_was_changed_after_it_was_imported_does_not_lend_its_key_to_the_old_code(tmp_path, own_method):
    """As with a notebook whose kernel was not started again."""
    own_method(1.0)
    module = importlib.import_module("mine")
    _, norm = mine_of(tmp_path / "run", module)
    own_method(0.5)
    mine_of(tmp_path / "run", module)
    _, halved = mine_of(tmp_path / "run", importlib.reload(module))
    assert halved == pytest.approx(norm / 2)


def typed_in(text: str) -> object:
    """A method whose class stands in no file, as in a notebook."""
    names = {"__name__": "notebook"}
    exec(text, names)
    return names["Mine"]()


TYPED = OWN.replace("Dense(strength={strength})", "Dense(strength=self.strength)")


@pytest.mark.parametrize("text", [OWN, TYPED], ids=["in its code", "on its class"])
def test_a_method_that_was_typed_in_anew_is_made_anew(tmp_path, text):
    norms = []
    for strength in (1.0, 2.0):
        done = run(one_case(), tmp_path, device="cpu", methods=[typed_in(text.format(strength=strength))])
        norms.append(done.scores.set_index("method").injected_norm["mine"])
    assert norms[1] == pytest.approx(2 * norms[0])


def made_by_a_function(strength: float) -> object:
    """A method whose class is made anew in every call, with its setting on the class."""

    class Mine:
        name, sites = "mine", "update"

        def plan(self, case) -> Intervention:
            return Dense(strength=self.strength).plan(case)

    Mine.strength = strength
    return Mine()


def test_a_setting_on_a_class_of_a_file_counts_too(tmp_path):
    norms = []
    for strength in (1.0, 2.0):
        done = run(one_case(), tmp_path, device="cpu", methods=[made_by_a_function(strength)])
        norms.append(done.scores.set_index("method").injected_norm["mine"])
    assert norms[1] == pytest.approx(2 * norms[0])


def test_two_methods_that_differ_only_on_their_classes_are_two(tmp_path):
    methods = [typed_in(TYPED.format(strength=strength)) for strength in (1.0, 2.0)]
    rows = run(one_case(), tmp_path, device="cpu", methods=methods).scores
    norms = rows[rows.method == "mine"].set_index("strength").injected_norm
    assert norms[2.0] == pytest.approx(2 * norms[1.0])
