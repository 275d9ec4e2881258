"""How much memory and how many cores a container leaves, and what counts as memory that runs out."""

from __future__ import annotations

import errno

import control_groups
import psutil
import pytest
import torch
from memory import OUT_OF_MEMORY

from riebench.core import groups, threads
from riebench.core.batches import halving
from riebench.core.errors import UserError
from riebench.core.memory import WORDS, Memory, free_memory, host_memory, is_out_of_memory, room_for

GB = 10**9
NO_LIMIT = "9223372036854771712\n"  # as version 1 says it


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A machine of 64 GB, 40 of them free, and a file system without control groups."""

    class Found:
        total, available = 64 * GB, 40 * GB

    monkeypatch.setattr(psutil, "virtual_memory", Found)
    monkeypatch.setattr(groups, "ROOT", tmp_path)
    return tmp_path


def v1(folder: str, limit: object, used: int = 0, cache: int = 0) -> dict[str, str]:
    return {
        f"{folder}memory.limit_in_bytes": f"{limit}\n",
        f"{folder}memory.usage_in_bytes": f"{used}\n",
        f"{folder}memory.stat": f"cache 77\ninactive_file 1\ntotal_cache 99\ntotal_inactive_file {cache}\n",
    }


def v2(folder: str, limit: object, used: int = 0, cache: int = 0) -> dict[str, str]:
    return {
        f"{folder}memory.max": f"{limit}\n",
        f"{folder}memory.current": f"{used}\n",
        f"{folder}memory.stat": f"anon 5\nfile 77\ninactive_anon 3\ninactive_file {cache}\nactive_file 9\n",
    }


def test_without_control_groups_the_machine_s_memory_counts(machine):
    assert host_memory() == Memory(64 * GB, 40 * GB)
    (machine / "proc/self").mkdir(parents=True)
    (machine / "proc/self/cgroup").write_text("0::/\n")  # and nothing mounted
    assert host_memory().free == free_memory("cpu") == 40 * GB


@pytest.mark.parametrize(("version", "files"), [(1, v1), (2, v2)])
def test_a_group_s_limit_counts_and_files_that_can_be_given_up_are_free(machine, version, files):
    control_groups.make(machine, version, "/job", files("job/", 16 * GB, 10 * GB, 3 * GB) | files("", NO_LIMIT))
    assert host_memory() == Memory(16 * GB, 9 * GB)


@pytest.mark.parametrize(("version", "files"), [(1, v1), (2, v2)])
@pytest.mark.parametrize(
    ("tight", "expected"),
    [("slurm/", 12 * GB - 11 * GB), ("slurm/job_7/", 16 * GB - 9 * GB), ("slurm/job_7/step_0/", 8 * GB - 3 * GB)],
)
def test_the_least_of_the_groups_around_it_counts(machine, version, files, tight, expected):
    """Each has a limit of its own; the tight one has the least left."""
    used = {"slurm/": 11 * GB, "slurm/job_7/": 9 * GB, "slurm/job_7/step_0/": 3 * GB}
    limit = {"slurm/": 12 * GB, "slurm/job_7/": 16 * GB, "slurm/job_7/step_0/": 8 * GB}
    tree = files("", NO_LIMIT if version == 1 else "max")
    for folder in used:
        tree |= files(folder, limit[folder] if folder == tight else 63 * GB, used[folder])
    control_groups.make(machine, version, "/slurm/job_7/step_0", tree)
    assert host_memory() == Memory(limit[tight], expected)


@pytest.mark.parametrize(("version", "none"), [(1, NO_LIMIT), (2, "max")])
def test_no_limit_is_none(machine, version, none):
    control_groups.make(machine, version, "/a/b", {1: v1, 2: v2}[version]("a/b/", none.strip(), 60 * GB))
    assert host_memory() == Memory(64 * GB, 40 * GB)


def test_a_container_that_sees_itself_as_the_root_is_limited(machine):
    control_groups.make(machine, 2, "/", v2("", 4 * GB, GB))
    assert host_memory() == Memory(4 * GB, 3 * GB)


@pytest.mark.parametrize("own", ["/docker/0a1b", "/docker/0a1b/inner", "/../outside", "/other"])
def test_a_container_that_mounts_its_own_group_is_limited(machine, own):
    """Of a process of the container, and of one that was put in from outside."""
    tree = v1("", 4 * GB, GB) | v1("inner/", 2 * GB, GB)
    control_groups.make(machine, 1, own, tree, shown="/docker/0a1b")
    assert host_memory() == (Memory(2 * GB, GB) if own.endswith("inner") else Memory(4 * GB, 3 * GB))


def test_what_is_used_up_leaves_nothing(machine):
    control_groups.make(machine, 2, "/job", v2("job/", 4 * GB, 5 * GB))
    assert host_memory() == Memory(4 * GB, 0)


def test_a_file_that_cannot_be_read_is_no_limit(machine):
    tree = {"job/memory.max": "nonsense\n", "job/memory.current": "1\n", "memory.max": "5\n"}  # no memory.current
    control_groups.make(machine, 2, "/job", tree)
    assert host_memory() == Memory(64 * GB, 40 * GB)


def test_what_torch_holds_of_a_gpu_is_free(monkeypatch):
    for name, value in {
        "mem_get_info": (2 * GB, 80 * GB),
        "memory_reserved": 30 * GB,
        "memory_allocated": 7 * GB,
    }.items():
        monkeypatch.setattr(torch.cuda, name, lambda _device, value=value: value)
    assert free_memory("cuda") == 25 * GB


# ---------------------------------------------------------------- cores

MAX, QUOTA, PERIOD = "cpu.max", "cpu.cfs_quota_us", "cpu.cfs_period_us"


@pytest.mark.parametrize(
    ("version", "files", "count"),
    [
        (2, {f"a/b/{MAX}": "200000 100000\n"}, 2),
        (2, {f"a/b/{MAX}": "max 100000\n"}, 4),
        (2, {f"a/b/{MAX}": "50000 100000\n"}, 1),
        (2, {f"a/b/{MAX}": "max 100000\n", f"a/{MAX}": "300000 100000\n"}, 3),  # nested
        (2, {f"a/b/{MAX}": "300000 100000\n", f"a/{MAX}": "200000 100000\n"}, 2),
        (1, {f"a/b/{QUOTA}": "200000\n", f"a/b/{PERIOD}": "100000\n"}, 2),
        (1, {f"a/b/{QUOTA}": "-1\n", f"a/b/{PERIOD}": "100000\n"}, 4),
        (
            1,
            {f"a/b/{QUOTA}": "-1\n", f"a/b/{PERIOD}": "100000\n", f"a/{QUOTA}": "150000\n", f"a/{PERIOD}": "50000\n"},
            3,
        ),
        (1, {}, 4),
        (2, {}, 4),
    ],
)
def test_a_container_s_cores_count(machine, monkeypatch, version, files, count):
    control_groups.make(machine, version, "/a/b", files, "cpu")
    monkeypatch.setattr(threads, "machine_cores", lambda: 4)
    monkeypatch.setattr(threads.psutil.Process, "cpu_affinity", lambda self: [0, 1, 2, 3], raising=False)
    monkeypatch.setattr(threads.psutil, "cpu_percent", lambda interval, percpu: [0.0] * 4)
    assert threads.count_free_cores() == count


# ---------------------------------------------------------------- running out

OTHERS = [
    RuntimeError("shape mismatch"),
    RuntimeError(
        "cuDNN error: CUDNN_STATUS_NOT_SUPPORTED. This error may appear if you passed in a non-contiguous input."
    ),
    RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED"),
    OSError(errno.ENOENT, "no such file"),
    UserError("a network does not fit: out of memory", remedy="get more"),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=lambda error: str(error)[:30])
def test_memory_that_runs_out_is_known_by_its_error(error, capsys):
    assert is_out_of_memory(error)
    if isinstance(error, OSError):
        return

    def work(size):
        if size > 2:
            raise error
        return size

    assert halving(work, 8, "decoding") == (2, 2) and capsys.readouterr().err.count("out of memory") == 2


@pytest.mark.parametrize("error", OTHERS, ids=lambda error: str(error)[:30])
def test_other_errors_are_not_taken_for_it(error):
    assert not is_out_of_memory(error)


def test_where_not_one_row_fits_the_error_says_what_ran_out():
    with pytest.raises(
        UserError, match=r"not even one row fits into memory \(cuDNN error: CUDNN_STATUS_ALLOC_FAILED\)"
    ):
        halving(lambda _size: (_ for _ in ()).throw(OUT_OF_MEMORY[3]), 2, "decoding")


def test_what_does_not_fit_while_it_is_loaded_is_one_line():
    said = "CLIP does not fit into the memory of cuda: it takes about 1.7 GB -> free some of it, or use another device"
    with pytest.raises(UserError) as caught, room_for("CLIP", "cuda", 1.71):
        raise OUT_OF_MEMORY[1]
    assert str(caught.value) == said
    with pytest.raises(RuntimeError, match="shape mismatch"), room_for("CLIP", "cuda"):
        raise OTHERS[0]
    assert all(word == word.lower() for word in WORDS)
