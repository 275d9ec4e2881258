"""What a run says of itself in its manifest, held against what is done with it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, NoReturn

from riebench.core.errors import UserError
from riebench.core.files import read_json
from riebench.core.values import Range, check_value

AGAIN = "run the same `riebench run` again"
#: Key -> what its value is, where there is one.
KINDS: dict[str, Any] = {
    "mode": str,
    "blocks": tuple[str, ...],
    "methods": tuple[Mapping, ...],
    "planted": Mapping,
    "config": Mapping,
    "config.edits": str,
    "config.backbone": str | Mapping,
    "config.subsets_of": tuple[str, ...] | str,
    "config.resamples": Annotated[int, Range(1, 1_000_000)],
    "edits": Mapping,
    "edits.sha256": str,
    "setup": Mapping,
    "versions": Mapping,
    "made": Annotated[int, Range(0)],
    "forwards": Annotated[float, Range(0)],
    "seconds": Annotated[float, Range(0)],
    **dict.fromkeys(("scoring", "device", "machine", "python"), str),
}


class Manifest(dict[str, Any]):
    """An object of a manifest, in which a key that is asked for and is not there is a `UserError`."""

    def __missing__(self, key: str) -> NoReturn:
        raise UserError(f"the run's manifest has no {key!r}", remedy=AGAIN)


def read_manifest(path: Path) -> Manifest:
    """Returns what a manifest says. Raises `UserError` for a file that is missing or broken, and for a value of another
    kind than a run writes; what is not there is an error where it is asked for."""
    found = _told(read_json(path, "the run's manifest"))
    for key, kind in KINDS.items():
        outer, _, inner = key.rpartition(".")
        within = found.get(outer, {}) if outer else found
        if inner in within:
            check_value(key, within[inner], kind, f"the run's manifest {path}: ")
    return found


def _told(value: Any) -> Any:
    if isinstance(value, dict):
        return Manifest({key: _told(part) for key, part in value.items()})
    return [_told(part) for part in value] if isinstance(value, list) else value
