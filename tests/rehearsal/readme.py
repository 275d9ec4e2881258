"""The commands that the README shows for SDXL."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

README = Path(__file__).parents[2] / "README.md"
SECTION = "## With SDXL"


def sdxl_commands(text: str) -> list[list[str]]:
    """Returns the words of every command in the fenced blocks of the section, and of those elsewhere that name a
    backbone of SDXL, without what is said behind two spaces."""
    found, heading, fenced = [], "", False
    for line in text.splitlines():
        if line.startswith("```"):
            fenced = not fenced
        elif not fenced and line.startswith("## "):
            heading = line
        elif fenced and line.startswith("riebench ") and (heading == SECTION or "--backbone sdxl-" in line):
            found.append(shlex.split(re.split(r"\s{2,}", line)[0]))
    return found
