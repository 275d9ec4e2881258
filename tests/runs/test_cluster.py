"""Runs on a Ray cluster of two workers: they make what one process makes, whatever becomes of the workers."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import psutil
import pytest
from conftest import SETTINGS
from ray_nodes import fall_here, needs_ray, ray

import riebench
from baselines.dense import Dense
from riebench.backbones.table import BACKBONES
from riebench.core.errors import UserError
from riebench.core.ray_cluster import Terms
from riebench.core.versions import installed_sources
from riebench.edits.edit import load_edits
from riebench.runs import local as workers
from riebench.runs import run as runs
from riebench.runs.config import read_config
from riebench.runs.ray import Worker, work_on_cluster
from riebench.runs.setup import Setup

GROUPS = [[SimpleNamespace(edit=SimpleNamespace(id=f"edit {i}"))] for i in range(5)]
BACKBONE = BACKBONES.get("tinyworld-turbo@1")
EDITS = load_edits("tinyworld")[::90][:5]
CONFIG = read_config(SETTINGS, {"edits_per_category": 0, "seeds": [42], "resamples": 50, "batch_size": 8})
CONFIG = dataclasses.replace(CONFIG, methods=CONFIG.methods[:3])


@dataclass(frozen=True)
class Deadly:
    """Kills its process when it sees an edit for the first time, and waits to fall with its node at another."""

    edit: str = ""
    folder: str = ""
    last: str = ""
    name = "deadly"
    strength = 1.0
    sites = "update"

    def plan(self, case):
        died = Path(self.folder, "died")
        if case.edit.id == self.edit and not died.exists():
            died.write_text(str(os.getpid()))
            os.kill(os.getpid(), signal.SIGKILL)
        if case.edit.id == self.last:
            fall_here(Path(self.folder, "fallen"))
        return Dense().plan(case)


@pytest.fixture
def light(cluster, monkeypatch):
    """Makes workers that load nothing, and do what they are told."""

    def use(load=lambda: [], work=lambda group: []):
        class Light:
            def load(self, terms, *_):
                return load()

            def work(self, group, _):
                return work(group)

        monkeypatch.setattr("riebench.runs.ray.Worker", Light)

    return use


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The run of one process, whose method kills nobody."""
    return make(tmp_path_factory.mktemp("alone"), Deadly())


def make(folder, *methods, edits=EDITS, engine="local"):
    """A run in groups of one case; one thread a process, as on the cluster."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "GROUP", 1)
        patch.setattr(workers, "usable_cores", lambda: 1)
        return runs.run(CONFIG, folder, device="cpu", edits=edits, methods=methods, engine=engine)


def work(groups, cluster):
    return work_on_cluster(iter(groups), "scoring", BACKBONE, cluster, {})


def assert_equal(one, other):
    """Rows are, and pictures, but for what names a method's class and settings."""
    named = ["recipe", "code", "image", "original", "edited", "regions"]
    left, right = (pd.read_parquet(run.folder / "scores.parquet") for run in (one, other))
    pd.testing.assert_frame_equal(left.drop(columns=named), right.drop(columns=named), check_exact=True)
    for a, b in zip(left.image, right.image, strict=True):
        assert (one.folder / a).read_bytes() == (other.folder / b).read_bytes()


@pytest.mark.process
def test_the_default_engine_needs_no_ray():
    code = "import sys, riebench.runs.run; assert 'ray' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)})


@pytest.mark.process
@needs_ray
def test_two_workers_make_what_one_process_makes(alone, cluster, tmp_path):
    class Unnamed(Deadly):  # as one that is typed in a notebook: nobody can import it
        pass

    made = make(tmp_path, Unnamed(), engine="ray")
    assert made.manifest["made"] == len(EDITS) * 18
    assert_equal(made, alone)


@pytest.mark.process
@needs_ray
def test_what_one_process_began_goes_on_where_a_worker_dies_and_then_a_node(alone, nodes, tmp_path, capsys):
    deadly = Deadly(EDITS[3].id, str(tmp_path), EDITS[4].id)
    make(tmp_path / "run", deadly, edits=EDITS[:2])
    with nodes.one_falls(tmp_path / "fallen"):
        made = make(tmp_path / "run", deadly, engine="ray")
    assert made.manifest["made"] == 3 * 18
    assert_equal(made, alone)
    assert int((tmp_path / "died").read_text()) != os.getpid()
    said = capsys.readouterr().err
    assert "Ray: 2 workers, a CPU each" in said
    for edit in EDITS[3:]:
        assert f"a worker died over the cases from edit {edit.id!r} on; another one takes it up" in said


@pytest.mark.process
@needs_ray
def test_each_group_has_a_worker_at_most(light, cluster, tmp_path):
    def do(group):
        Path(tmp_path, str(os.getpid())).touch()
        time.sleep(0.2)
        return [group[0].edit.id]

    light(work=do)
    assert list(work(GROUPS[:1], cluster)) == ["edit 0"]
    assert len(list(tmp_path.iterdir())) == 1
    assert sorted(work(GROUPS, cluster)) == [group[0].edit.id for group in GROUPS]
    assert len(list(tmp_path.iterdir())) == 1 + 2


@pytest.mark.process
@needs_ray
def test_what_is_made_comes_at_once_and_groups_are_taken_as_workers_come_free(light, cluster):
    taken = []

    def do(group):
        time.sleep(5 if group[0].edit.id == "edit 0" else 0)
        return [group[0].edit.id]

    light(work=do)
    batches = work((taken.append(group) or group for group in GROUPS), cluster)
    assert next(batches) == "edit 1" and len(taken) == 2
    assert next(batches) == "edit 2" and len(taken) == 3
    batches.close()
    assert ray.is_initialized()
    deadline = time.monotonic() + 30
    while ray.available_resources().get("CPU") != 2:
        assert time.monotonic() < deadline, f"the workers hold their places: {ray.available_resources()}"
        time.sleep(0.1)


@pytest.mark.process
@needs_ray
@pytest.mark.parametrize("when", ["load", "work"])
def test_cases_that_cost_three_workers_are_given_up(light, cluster, tmp_path, when):
    def die(*_):
        Path(tmp_path, str(os.getpid())).touch()
        os.kill(os.getpid(), signal.SIGKILL)

    light(**{when: die})
    with pytest.raises(UserError, match="3 workers died over the cases from edit 'edit 0' on -> look at Ray's logs"):
        list(work(GROUPS[:1], cluster))
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.process
@needs_ray
@pytest.mark.parametrize("when", ["load", "work"])
@pytest.mark.parametrize("error", [UserError("no weights", remedy="fetch them"), KeyError("the power fails")])
def test_errors_of_a_worker_come_out_as_they_are(light, cluster, when, error):
    def fail(*_):
        raise error

    light(**{when: fail})
    with pytest.raises(type(error)) as raised:
        list(work(GROUPS, cluster))
    assert type(raised.value) is type(error) and str(raised.value) == str(error)


def test_a_worker_of_other_versions_or_metrics_refuses():
    words = BACKBONE, {"setup": Setup()}, "another"
    with pytest.raises(UserError, match=f"the code in {Path(riebench.__file__).parents[1]} on .* is not that of this"):
        Worker().load(Terms("cpu", "another", ()), *words)
    with pytest.raises(UserError, match="the metrics on .*, or the weights that they use, are not those"):
        Worker().load(Terms("cpu", installed_sources(), ()), *words)


@pytest.mark.process
@needs_ray
def test_ctrl_c_finishes_what_is_in_work_and_leaves_no_process(tmp_path):
    """Ray's processes are in the group that Ctrl-C goes to."""
    code = "import sys; from riebench import runs; runs.GROUP = 1; from riebench.cli import main; sys.exit(main())"
    words = ["run", SETTINGS, "--device", "cpu", "--edits-per-category", "4", "--engine", "ray", "--out", tmp_path]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code, *map(str, words)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=env, start_new_session=True)
    while not list(tmp_path.glob("parts/*.parquet")):
        assert process.poll() is None
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130 and "the same command goes on from there" in said and "Traceback" not in said
    deadline = time.monotonic() + 20
    while left := in_session(process.pid):
        assert time.monotonic() < deadline, left
        time.sleep(0.1)


def in_session(leader):
    """Ids of the processes of a session."""
    found = []
    for pid in psutil.pids():
        with suppress(ProcessLookupError):
            found += [pid] if os.getsid(pid) == leader else []
    return found
