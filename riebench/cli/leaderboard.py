"""Verbs of the leaderboard: submit, leaderboard."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from riebench.cli.flags import Verb, word


@dataclass(frozen=True, kw_only=True)
class Submit:
    """Holds the words of `riebench submit`."""

    run: Path = word(positional=True)
    """Folder of a finished run, as of riebench run leaderboard."""
    methods: tuple[str, ...] = ()
    """The methods, comma-separated, as sae or dense@2 (default: all)."""
    out: Path = Path("data/leaderboard")
    """Folder of the entries."""
    authors: str = ""
    """Who made the method."""
    code: str = ""
    """Address of its source."""
    description: str = ""
    """One sentence about it."""


def _submit(words: Submit) -> None:
    from riebench.leaderboard import submit

    about = {"authors": words.authors, "code": words.code, "description": words.description}
    for entry in submit(words.run, words.out, methods=words.methods, **about):
        print(entry)


@dataclass(frozen=True, kw_only=True)
class Leaderboard:
    """Holds the words of `riebench leaderboard`."""

    entries: Path | None = None
    """Folder of entries (default: the shipped ones)."""
    out: Path = Path("site")
    """Folder of the site."""


def _leaderboard(words: Leaderboard) -> None:
    from riebench.core.files import data_folder
    from riebench.leaderboard import render_site

    print(render_site(words.entries or data_folder() / "leaderboard", words.out).resolve())


VERBS = (
    Verb(
        "submit",
        "write the leaderboard's entries of a run's methods",
        Submit,
        _submit,
        (
            "riebench submit runs/leaderboard",
            'riebench submit runs/mine --methods mine --authors "A. Author" --code https://example.org/mine',
        ),
    ),
    Verb(
        "leaderboard",
        "render the leaderboard as a static site",
        Leaderboard,
        _leaderboard,
        ("riebench leaderboard", "riebench leaderboard --entries my-entries --out my-site"),
    ),
)
