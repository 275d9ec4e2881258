"""The self-test: every step by itself, so that one that fails keeps no other from being done."""

from __future__ import annotations

import gc
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from riebench.backbones.loading import choose_device
from riebench.backbones.table import BACKBONES
from riebench.core.errors import UserError
from riebench.core.files import named_path, write_json
from riebench.core.text_tables import aligned
from riebench.runs.store import Store
from riebench.selftest.bench import Bench
from riebench.selftest.checks import CHECKS
from riebench.selftest.step import NOT_OK, NOT_POSSIBLE, OK, Check, NotPossible, Step, one_line, plain

FILE = "selftest.json"
FRAMES = 4  # of a failed step, the innermost ones


@dataclass(frozen=True)
class Report:
    """What a self-test found."""

    riebench: str
    """Version."""
    backbone: str
    """Its name, and whether its weights were random."""
    device: str
    steps: tuple[Step, ...]

    @property
    def passed(self) -> bool:
        """Returns whether no step is "not ok"."""
        return all(step.status != NOT_OK for step in self.steps)

    def as_json(self) -> dict[str, Any]:
        """Returns the same in what JSON can hold."""
        return asdict(self) | {"steps": [asdict(step) for step in self.steps]}


def selftest(
    backbone: str,
    device: str = "auto",
    out: str | Path = "selftest",
    *,
    random: bool = False,
    checks: Sequence[Check] = CHECKS,
    say: Callable[[str], None] = lambda line: print(line, file=sys.stderr, flush=True),
) -> Report:
    """Does the steps one after the other, and writes what they found, and pictures to look at, into a folder.

    out: a new or empty folder, or that of an earlier self-test. random: SDXL at its full size with random weights in
    the place of the backbone's. say: is told of each step as it begins and ends. Raises `UserError` for a name, a
    device or a folder that cannot be used, before anything is done.
    """
    found, where, folder = BACKBONES.get(backbone), choose_device(device), named_path(out)
    if random and found.judges != "sdxl":
        raise UserError(
            f"random weights are of SDXL's size, not of that of {backbone}", remedy="add --backbone sdxl-turbo@1"
        )
    with Store(folder):  # refused now where it is another's, not after the work
        pass
    bench = Bench(found, where, folder, random=random)
    steps = []
    for check in checks:
        say(f"riebench selftest: {check.number} {check.name} ...")
        steps.append(do(check, bench))
        say(f"riebench selftest: {check.number} {check.name}: {steps[-1].status}, {steps[-1].seconds:.1f} s")
    name = f"{found.name}{' with random weights' if random else ''}"
    report = Report(_version(), name, where.type, tuple(steps))
    write_json(folder / FILE, report.as_json(), sort_keys=False)
    return report


def do(check: Check, bench: Bench) -> Step:
    """Returns what came of a step: whatever goes wrong in it is what was found."""
    started = time.perf_counter()
    detail: dict[str, Any] = {}
    try:
        found = check.do(bench)
        status = NOT_OK if not found.ok else NOT_POSSIBLE if found.missing else OK
        figure, detail = found.figure, dict(found.detail)
        figure += f"; {found.missing}" if found.ok and found.missing else ""
    except NotPossible as reason:
        status, figure = NOT_POSSIBLE, one_line(reason)
    except Exception as error:
        status, figure, detail = NOT_OK, one_line(error), {"where": _where(error)}
    seconds = time.perf_counter() - started
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return Step(check.number, check.name, status, figure, check.wanted, round(seconds, 3), plain(detail))


def format_report(report: Report) -> str:
    """Returns a report for people: a line for each step, and what it should be of those that are not ok."""
    rows = [("", "step", "status", "seconds", "figure")]
    rows += [(str(s.number), s.name, s.status, f"{s.seconds:.1f}", s.figure) for s in report.steps]
    lines = [f"riebench {report.riebench}, {report.backbone} on {report.device}", "", *aligned(rows, right=(0, 3))]
    wrong = [step for step in report.steps if step.status == NOT_OK]
    lines += [""] if wrong else []
    lines += [f"{step.number} {step.name} should be: {step.wanted}" for step in wrong]
    counts = {status: sum(step.status == status for step in report.steps) for status in (OK, NOT_OK, NOT_POSSIBLE)}
    return "\n".join([*lines, "", ", ".join(f"{count} {status}" for status, count in counts.items())])


def _where(error: Exception) -> list[str]:
    """Returns the innermost frames of an error: file, line, function."""
    frames = traceback.extract_tb(error.__traceback__)[-FRAMES:]
    return [f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in frames]


def _version() -> str:
    try:
        return metadata.version("riebench")
    except metadata.PackageNotFoundError:  # run from a clone
        return "not installed"
