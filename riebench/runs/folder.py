"""Where a run goes that was told no folder: its name says what was asked for, so that no run takes another's place."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from riebench.core.errors import UserError
from riebench.core.files import named_path
from riebench.core.keys import digest
from riebench.runs.config import RunConfig, preset_names, read_config

RUNS = Path("runs")
NO_DIFFERENCE = ("batch_size",)  # fields that decide how a run is done, and not what
LONGEST = 100


def default_folder(name: str, overrides: Mapping[str, Any], further: Sequence[str] = ()) -> Path:
    """Returns `runs/<name>` of a preset or a YAML file, with what differs from it: `runs/quickstart-edits=mine.yaml`.

    overrides: values in the place of its own; those that are its own say nothing. further: words on what else differs.
    A file that lies elsewhere than in the current folder is named with its folders.
    """
    if name in preset_names():
        base = name
    else:
        base = _words_of_path(named_path(name)).removesuffix(".yaml").removesuffix(".yml")
        base += ".yaml" if base in preset_names() else ""
    words = [f"{key}={_words(value)}" for key, value in overrides.items() if key in _differing(name, overrides)]
    return RUNS / _file_name("-".join((base, *words, *further)))


def folder_of_config(config: RunConfig, further: Sequence[str] = ()) -> Path:
    """Returns `runs/custom-<digest>` of a configuration that was made in Python."""
    asked = {key: str(value) for key, value in vars(config).items() if key not in NO_DIFFERENCE}
    return RUNS / _file_name("-".join(("custom", digest(asked)[:8], *further)))


def _differing(name: str, overrides: Mapping[str, Any]) -> list[str]:
    keys = [key for key in overrides if key not in NO_DIFFERENCE]
    try:
        own, now = read_config(name), read_config(name, overrides)
    except UserError:  # as of a file that is whole with these values alone
        return keys
    return [key for key in keys if getattr(own, key) != getattr(now, key)]


def _words(value: Any) -> str:
    if isinstance(value, list | tuple):
        return "+".join(map(_words, value))
    if isinstance(value, str | Path) and named_path(value or ".").exists():
        return _words_of_path(named_path(value or "."))
    return str(value)


def _words_of_path(path: Path) -> str:
    """Returns the way to a file, from the current folder on where it lies there."""
    whole = path.resolve()
    near = whole.relative_to(Path.cwd()) if whole.is_relative_to(Path.cwd()) else whole
    return "-".join(part for part in near.parts if part != whole.anchor)


def _file_name(text: str) -> str:
    plain = re.sub(r"[^\w.@+=-]+", "-", text).strip("-.") or "run"
    return plain if len(plain) <= LONGEST else f"{plain[:LONGEST]}-{digest(text)[:8]}"
