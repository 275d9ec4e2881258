"""A training says of itself here what it does: in lines of JSON, in a picture of them, and to trackers."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from riebench.core.errors import UserError
from riebench.core.files import write_text
from riebench.core.json_text import json_text
from sae_models.architectures import Architecture
from sae_models.curves import curves
from sae_models.trackers import Tracker

LOG_FILE, CURVES_FILE = "log.jsonl", "curves.svg"
NAMES = ("loss", "ev", "l0", "dead")


class TrainingLog:
    """This keeps `log.jsonl` and `curves.svg` in a folder, where there is one; a tracker gets the same numbers.

    A line is of one report: step, rows, lr, seconds since this run began, and under `saes` of each autoencoder loss, ev
    (explained variance), l0 and dead (share of the features).
    """

    def __init__(self, folder: Path | None, architectures: Sequence[Architecture], track: Tracker, step: int) -> None:
        """Opens the log at the step from which the training goes on. What it has of later ones, which are about to come
        again, is taken out, and so is a last line that was cut short."""
        self.folder, self.architectures, self.track = folder, architectures, track
        self.began = time.monotonic()
        self.lines: list[dict[str, Any]] = []
        if folder is not None and (folder / LOG_FILE).exists():
            self.lines = [line for line in _lines(folder / LOG_FILE) if line["step"] <= step]
            write_text(folder / LOG_FILE, "".join(json_text(line) + "\n" for line in self.lines))

    def add(self, step: int, rows: int, lr: float, found: list[list[float]]) -> None:
        """Adds a report. found: of each autoencoder, in the order of `NAMES`. Raises `UserError` where the file cannot
        be written."""
        saes = [dict(zip(NAMES, each, strict=True)) for each in found]
        if self.folder is not None:
            seconds = round(time.monotonic() - self.began, 3)
            line = {"step": step, "rows": rows, "lr": lr, "seconds": seconds, "saes": saes}
            self._write(self.folder / LOG_FILE, line)
        numbers = {f"{name}/{number}": each[name] for name in NAMES for number, each in enumerate(saes)}
        self.track(step, {"rows": rows, "lr": lr} | numbers)

    def draw(self) -> None:
        """Draws the whole log again. Raises `UserError` where the file cannot be written."""
        if self.folder is not None and self.lines:
            shared, labels = _words(self.architectures)
            title = f"Training of {len(labels)} SAEs" if len(labels) > 1 else "Training of an SAE"
            write_text(self.folder / CURVES_FILE, curves(self.lines, title, shared, labels))

    def _write(self, path: Path, line: dict[str, object]) -> None:
        self.lines.append(line)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(path, "a") as file:
                file.write(json_text(line) + "\n")
        except OSError as error:
            raise UserError(
                f"cannot write {path}: {error.strerror or error}",
                remedy="choose a folder you may write to, on a disk with room",
            ) from error


def _lines(path: Path) -> list[dict[str, Any]]:
    """Returns the lines of a log up to the first that is broken."""
    found = []
    for line in path.read_text().splitlines():
        try:
            found.append(json.loads(line))
        except ValueError:
            break
    return found


def _words(architectures: Sequence[Architecture]) -> tuple[str, list[str]]:
    """Returns what all architectures share, and what else each one is."""
    parts = [
        [
            f"{each.width} → {each.num_features}",
            *(_given(settings) for settings in (each.sparsity, each.matryoshka, each.revival) if settings is not None),
            f"seed {each.seed}",
            *([f"block {each.block}"] if any(one.block for one in architectures) else []),
        ]
        for each in architectures
    ]
    shared = [part for part in parts[0] if all(part in each for each in parts)]
    own = [", ".join(part for part in each if part not in shared) for each in parts]
    return ", ".join(shared), [f"SAE {number}: {words}".rstrip(": ") for number, words in enumerate(own)]


def _given(settings: Any) -> str:
    """Returns a frozen setting in words, without what is at its default."""
    words = [
        f"{field.name}={getattr(settings, field.name)}"
        for field in fields(settings)
        if getattr(settings, field.name) != field.default
    ]
    return f"{type(settings).__name__}({', '.join(words)})"
