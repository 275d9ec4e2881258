"""The verb that tries everything on this machine: selftest."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from riebench.cli.flags import Verb, word
from riebench.core.json_text import json_text
from riebench.runs.config import RunConfig


@dataclass(frozen=True, kw_only=True)
class Selftest:
    """Holds the words of `riebench selftest`."""

    backbone: str = RunConfig.backbone
    """A name out of `riebench ls backbones`."""
    device: str = "auto"
    """The device: auto, cpu or cuda."""
    out: Path = Path("selftest")
    """Folder for pictures to look at and selftest.json: new, empty, or that of an earlier self-test."""
    random: bool = word(False)
    """SDXL's networks at their full size with random weights, where its own are not here: speed and memory."""
    json: bool = False
    """Print JSON."""


def _selftest(words: Selftest) -> int:
    from riebench.selftest.run import format_report, selftest

    report = selftest(words.backbone, words.device, words.out, random=words.random)
    print(json_text(report.as_json(), indent=2) if words.json else format_report(report))
    return 0 if report.passed else 1


VERBS = (
    Verb(
        "selftest",
        "try every part on this machine, and say what is ok, what is not and what is not possible here",
        Selftest,
        _selftest,
        ("riebench selftest", "riebench selftest --backbone sdxl-turbo@4 --device cuda --json"),
    ),
)
