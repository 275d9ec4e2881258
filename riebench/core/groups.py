"""Control groups: what a container lets this process have of a machine. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/")  # of the file system that `/proc` and `/sys` lie in


def control_groups(controller: str) -> Iterator[Path]:
    """Yields the folders of the control groups that this process is in, each with its parents, the innermost first.

    controller: "memory" or "cpu". Of version 1 the hierarchy of that controller is looked at, of version 2 the one that
    there is; a machine may have both. Yields nothing where there are no control groups. Sources: the formats of
    `/proc/self/cgroup` and `/proc/self/mountinfo` in cgroups(7) and proc(5).
    """
    own = _own_groups(controller)
    for kind, shown, mount in _mounts(controller):
        if kind in own:
            yield from _from_inside(mount, _below(own[kind], shown))


def _own_groups(controller: str) -> dict[str, str]:
    """Returns "cgroup" or "cgroup2", for version 1 or 2, -> the path of this process's group in that hierarchy."""
    found = {}
    for line in _lines("proc/self/cgroup"):
        number, controllers, path = line.split(":", 2)
        if number == "0" and not controllers:
            found["cgroup2"] = path
        elif controller in controllers.split(","):
            found["cgroup"] = path
    return found


def _mounts(controller: str) -> Iterator[tuple[str, str, Path]]:
    """Yields (file system, which of its groups is shown, folder) of each place where groups of a controller are."""
    for line in _lines("proc/self/mountinfo"):
        before, _, after = line.partition(" - ")
        shown, folder = before.split()[3:5]
        kind, _, options = after.split(" ", 2)
        if kind == "cgroup2" or (kind == "cgroup" and controller in options.split(",")):
            yield kind, shown, ROOT / folder.lstrip("/")


def _below(group: str, shown: str) -> str:
    """Returns a group's path from the one that is shown on; "" where it does not lie below that, as in a container that
    sees its own group under another name."""
    if shown == "/":
        inside = group
    else:
        inside = group.removeprefix(shown) if group == shown or group.startswith(f"{shown}/") else ""
    return "" if ".." in inside.split("/") else inside.strip("/")


def _from_inside(mount: Path, inside: str) -> Iterator[Path]:
    folder = mount / inside
    while folder != mount:
        yield folder
        folder = folder.parent
    yield mount


def _lines(path: str) -> list[str]:
    try:
        return (ROOT / path).read_text().splitlines()
    except OSError:  # no Linux, or no control groups
        return []
