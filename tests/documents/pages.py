"""What the README and the pages in docs/ show: fenced blocks, and the commands in them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = {path.relative_to(ROOT).as_posix(): path for path in (ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")))}
#: What tells a line of usage from a command: choices, placeholders in capitals, words left out.
USAGE = re.compile(r"[\[\]|…]|\.\.\.|\b(?!README)[A-Z]{3,}\b")


@dataclass(frozen=True)
class Fence:
    """One fenced block of a page."""

    language: str
    text: str
    line: int
    heading: str


def fences(page: str) -> list[Fence]:
    """Returns the fenced blocks of a page, in their order."""
    found, heading, start, lines = [], "", 0, PAGES[page].read_text().splitlines()
    for number, line in enumerate(lines, 1):
        if line.startswith("```"):
            if start:
                found.append(Fence(lines[start - 1][3:], "\n".join(lines[start : number - 1]) + "\n", start, heading))
            start = 0 if start else number
        elif not start and line.startswith("#"):
            heading = line.lstrip("# ")
    assert not start, f"{page}: a block is not closed"
    return found


def command_lines(page: str) -> Iterator[tuple[Fence, str]]:
    """Yields every line of the fences that is a command of riebench, without what is said behind it; what goes on in
    the next lines, further in, is part of it."""
    for fence in fences(page):
        if fence.language not in ("", "bash"):
            continue
        lines: list[str] = []
        for line in fence.text.splitlines():
            if re.match(r"\s{8,}[\[-]", line) and lines:
                lines[-1] += f" {_said(line.strip())}"
            elif found := re.search(r"(?:^|\s)(riebench [a-z].*)", line):
                lines.append(_said(found[1]))
        for line in lines:
            yield fence, line


def inline_commands(page: str) -> list[str]:
    """Returns what stands as `riebench ...` in the sentences of a page."""
    return re.findall(r"`(riebench [a-z][^`]*)`", PAGES[page].read_text())


def words_of(line: str) -> list[str]:
    """Returns the words behind `riebench`."""
    return shlex.split(line)[1:]


def _said(line: str) -> str:
    return re.split(r"\s{2,}|\s#\s", line)[0]
