"""Trees of control groups as they lie in `/proc` and `/sys`, for tests to be in."""

from __future__ import annotations

from pathlib import Path

#: Version -> what a machine mounts: of version 1 the two hierarchies that count, and the empty one of version 2.
MOUNTS = {
    1: (
        "33 31 0:30 {memory} /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n"
        "34 31 0:31 {cpu} /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:15 - cgroup cgroup rw,cpu,cpuacct\n"
        "41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n"
    ),
    2: "30 23 0:26 {memory} /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n",
}
FOLDERS = {(1, "memory"): "memory", (1, "cpu"): "cpu,cpuacct", (2, "memory"): "", (2, "cpu"): ""}


def make(root: Path, version: int, own: str, files: dict[str, str], controller: str = "memory", shown: str = "/"):
    """Makes a tree in which this process is in the group `own`. files: path, from the hierarchy's mount on, -> text.
    shown: the group that is mounted, as a container without a namespace of its own has it."""
    (root / "proc/self").mkdir(parents=True)
    others = {"memory": "7:cpu,cpuacct:/elsewhere\n", "cpu": "4:memory:/elsewhere\n"}[controller]
    name = {"memory": "memory", "cpu": "cpu,cpuacct"}[controller]
    lines = f"9:name=systemd:/\n5:{name}:{own}\n{others}0::/\n" if version == 1 else f"0::{own}\n"
    (root / "proc/self/cgroup").write_text(lines)
    disk = "22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/root rw\n"
    (root / "proc/self/mountinfo").write_text(disk + MOUNTS[version].format(memory=shown, cpu=shown))
    mount = root / "sys/fs/cgroup" / FOLDERS[version, controller]
    for path, text in files.items():
        (mount / path).parent.mkdir(parents=True, exist_ok=True)
        (mount / path).write_text(text)
