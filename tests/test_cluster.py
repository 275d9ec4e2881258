"""Runs on a Ray cluster of two workers: they make what one process makes, whatever becomes of the workers."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest

from baselines.dense import Dense
from riebench import runs
from riebench.backbones import BACKBONES
from riebench.cluster import work_on_cluster
from riebench.config import read_config
from riebench.edits import load_edits
from riebench.errors import UserError
from riebench.metrics import METRICS
from riebench.plan import plan, plan_variants
from riebench.versions import judge_version

try:
    import ray
except ImportError:
    ray = None

needs_ray = pytest.mark.skipif(ray is None, reason="Ray is not installed")
BACKBONE = BACKBONES.get("tinyworld-turbo@1")
EDITS = load_edits("tinyworld")[::90][:5]
CONFIG = read_config("quickstart", {"edits_per_category": 0, "seeds": [42], "resamples": 50, "batch_size": 8})
CONFIG = dataclasses.replace(CONFIG, methods=CONFIG.methods[:3])


@dataclass(frozen=True)
class Deadly:
    """Kills its process the first `times` times that it sees an edit."""

    folder: str
    edit: str
    times: int = 1
    name = "deadly"
    strength = 1.0
    sites = "update"

    def plan(self, case):
        deaths = Path(self.folder, f"deaths of {self.name}")
        died = deaths.read_text().split() if deaths.exists() else []
        if case.edit.id == self.edit and len(died) < self.times:
            deaths.write_text(" ".join([*died, str(os.getpid())]))
            os.kill(os.getpid(), signal.SIGKILL)
        return Dense().plan(case)


@pytest.fixture(scope="module")
def cluster():
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


@pytest.fixture(autouse=True)
def small_groups(monkeypatch):
    monkeypatch.setattr(runs, "GROUP", 1)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The run of one process, whose method kills nobody."""
    return make(tmp_path_factory.mktemp("alone"), Deadly("", "", 0))


def make(folder, *methods, edits=EDITS, engine="local"):
    return runs.run(CONFIG, folder, device="cpu", edits=edits, methods=methods, engine=engine)


def groups_of(*methods, edits=EDITS):
    tasks = plan(BACKBONE, [(edit, 42) for edit in edits], plan_variants(methods, ""), "touched")
    return [[task] for task in tasks]


def work(groups, *, judges="", backbone=BACKBONE, address=None):
    judges = judges or judge_version(METRICS.names(), backbone.judges)
    return work_on_cluster(iter(groups), judges, backbone, "cpu", {"batch_size": 8}, address)


def assert_equal(one, other):
    """Rows are, and pictures, but for what names the settings of a method."""
    named = ["recipe", "image"]
    left, right = (pd.read_parquet(run.folder / "scores.parquet") for run in (one, other))
    pd.testing.assert_frame_equal(left.drop(columns=named), right.drop(columns=named), check_exact=True)
    for a, b in zip(left.image, right.image, strict=True):
        assert (one.folder / a).read_bytes() == (other.folder / b).read_bytes()


def test_the_default_engine_needs_no_ray():
    code = "import sys, riebench.runs, riebench.api, riebench.cli; assert 'ray' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)})


def test_without_ray_the_user_is_told_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r'not installed -> pip install "riebench\[ray\]"'):
        next(work([["a group"]]))


def test_without_a_group_nothing_is_started(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert list(work([])) == []


@needs_ray
@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "auto", "nonsense", "host:port"])
def test_an_address_where_nothing_answers_is_said_at_once(address, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    assert not ray.is_initialized(), "these tests come before those that start a cluster"
    handler, start = signal.getsignal(signal.SIGTERM), time.monotonic()
    with pytest.raises(UserError, match=f"no Ray cluster at {address}: .* -> check the address"):
        next(work([["a group"]], address=address))
    assert time.monotonic() - start < 10 and signal.getsignal(signal.SIGTERM) is handler


@needs_ray
def test_two_workers_make_what_one_process_makes(alone, cluster, tmp_path):
    class Unnamed(Deadly):  # as one that is typed in a notebook: nobody can import it
        pass

    for method in (Deadly("", "", 0), Unnamed("", "", 0)):
        made = make(tmp_path / type(method).__name__, method, engine="ray")
        assert made.manifest["made"] == len(EDITS) * 18
        assert_equal(made, alone)


@needs_ray
def test_cases_of_a_worker_that_dies_are_redone(alone, cluster, tmp_path):
    deadly = Deadly(str(tmp_path), EDITS[2].id)
    assert_equal(make(tmp_path / "run", deadly, engine="ray"), alone)
    (died,) = (tmp_path / "deaths of deadly").read_text().split()
    assert int(died) != os.getpid()


@needs_ray
def test_cases_that_kill_three_workers_are_given_up(cluster, tmp_path):
    deadly = Deadly(str(tmp_path), EDITS[0].id, times=9)
    with pytest.raises(UserError, match=f"3 workers died over the cases from edit '{EDITS[0].id}' on"):
        list(work(groups_of(deadly, edits=EDITS[:1])))
    assert len(set((tmp_path / "deaths of deadly").read_text().split())) == 3


@needs_ray
def test_errors_of_a_worker_come_out_as_they_are(cluster, tmp_path):
    class Failing(Dense):
        def plan(self, case):
            raise KeyError("the power fails")

    with pytest.raises(KeyError, match="the power fails"):
        list(work(groups_of(Failing(), edits=EDITS[:1])))
    with pytest.raises(UserError, match=f"the weights of {BACKBONE.name} are not at {tmp_path}"):
        list(work(groups_of(Dense()), backbone=dataclasses.replace(BACKBONE, folder=str(tmp_path))))
    with pytest.raises(UserError, match="the code or the metrics .* are not those that the run was planned with"):
        list(work(groups_of(Dense()), judges="others"))


@needs_ray
def test_groups_are_taken_as_workers_come_free_and_workers_go_when_the_caller_does(cluster):
    taken = []
    groups = groups_of(Dense())
    batches = work(taken.append(group) or group for group in groups)
    next(batches)
    assert len(taken) <= 3, "two in work, and one after the first that was done"
    batches.close()
    deadline = time.monotonic() + 20
    while ray.available_resources().get("CPU") != 2:
        assert time.monotonic() < deadline, "the workers hold their places"
        time.sleep(0.1)


@needs_ray
def test_a_run_goes_on_with_another_engine(alone, cluster, tmp_path):
    harmless = Deadly("", "", 0)
    make(tmp_path, harmless, edits=EDITS[:2])
    made = make(tmp_path, harmless, engine="ray")
    assert made.manifest["made"] == 3 * 18
    assert_equal(made, alone)


@needs_ray
def test_ctrl_c_finishes_what_is_in_work_and_leaves_no_process(tmp_path):
    """Ray's processes are in the group that Ctrl-C goes to."""
    code = "import sys; from riebench import runs; runs.GROUP = 1; from riebench.cli import main; sys.exit(main())"
    words = ["run", "quickstart", "--device", "cpu", "--edits-per-category", "4", "--engine", "ray", "--out", tmp_path]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code, *map(str, words)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=env, start_new_session=True)
    while not list(tmp_path.glob("parts/*.parquet")):
        assert process.poll() is None
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130 and "the same command goes on from there" in said and "Traceback" not in said
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)
