"""The leaderboard's site: static pages out of reviewed entries, which need no network and no server."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from html import escape
from importlib import resources
from pathlib import Path
from string import Template
from urllib.parse import urlencode

from riebench.core.errors import UserError
from riebench.leaderboard.entries import IMAGES_FOLDER, Entry, read_entries
from riebench.leaderboard.site_board import COLUMNS, board_of, name_of_board, plots_of, standing
from riebench.leaderboard.site_entry import PICTURES, entry_sections, marks
from riebench.leaderboard.site_words import address, embedded_json
from riebench.report.markup import links_to, policy_digest, titled
from riebench.report.words import count_of

INDEX, PAGES, IMAGES = "index.html", "entries", "images"
#: Column of the table -> its head, in order; those of `COLUMNS` stand before the last two.
FIRST_HEADS = {"rank": "Rank", "method": "Method", "sees": "Sees edited image", "value": "Score"}
LAST_HEADS = {"features": "Features", "submitted": "Submitted"}


def render_site(entries_root: Path, out: Path) -> Path:
    """Writes the site of the entries below `entries_root` into `out`; returns its `index.html`.

    The pages are made in a temporary folder beside `out`, and then moved to their places one by one, the index last, so
    that a site is never half a page. Other files in `out` stay. Raises `UserError` for a folder without entries, an
    entry that cannot be read or shown, two entries of one name on one backbone, and where `out` cannot be written.
    """
    entries = read_entries(Path(entries_root))
    out = Path(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as made:
            _write_site(entries, Path(made))
            _move_files(Path(made), out)
    except OSError as error:
        raise UserError(
            f"cannot write the site to {out}: {error.strerror or error}",
            remedy="choose a folder you may write to, on a disk with room",
        ) from error
    return out / INDEX


def _write_site(entries: Sequence[Entry], folder: Path) -> None:
    twice = [place for place, count in Counter((entry.backbone, entry.name) for entry in entries).items() if count > 1]
    if twice:
        raise UserError(f"two entries on {twice[0][0]} are called {twice[0][1]!r}", remedy="give one another name")
    together: dict[str, list[Entry]] = {}
    for entry in sorted(entries, key=lambda one: (name_of_board(one), one.name)):
        together.setdefault(name_of_board(entry), []).append(entry)
    boards, plots = [], []
    for of_board in sorted(together.values(), key=len, reverse=True):  # what most entries are on is shown first
        pages = {entry.name: address(PAGES, entry.backbone, f"{entry.name}.html") for entry in of_board}
        boards.append(board_of(of_board, pages))
        plots.append(plots_of(of_board, pages))
        for entry in of_board:
            _write_entry(entry, boards[-1], folder)
    (folder / INDEX).write_text(_index(boards, plots), encoding="utf-8")


def _index(boards: Sequence[dict], plots: Sequence[Mapping[str, str]]) -> str:
    heads = {**FIRST_HEADS, **{column.key: column.label for column in COLUMNS}, **LAST_HEADS}
    columns = [{"key": c.key, "better": c.better, "signed": c.signed} for c in COLUMNS]
    templates = (
        f'<template id="{escape(f"plot-{number}-{category}")}">{svg}</template>'
        for number, of_board in enumerate(plots)
        for category, svg in of_board.items()
    )
    num_entries = sum(len(board["entries"]) for board in boards)
    return _page(
        "index.html",
        scripts=("board.js",),
        subtitle=f"{count_of(num_entries, 'entry', 'entries')} on {count_of(len(boards), 'backbone')}.",
        heads="".join(
            f'<th scope="col" data-key="{key}"><button type="button" class="sort">{escape(label)}</button></th>'
            for key, label in heads.items()
        ),
        links="".join(_links(board) for board in boards),
        plots="\n".join(templates),
        data=embedded_json({"backbones": boards, "columns": columns}),
    )


def _links(board: Mapping) -> str:
    """The entries of a backbone, for readers without scripts."""
    items = "".join(
        f'<li><a href="{escape(entry["page"])}">{escape(entry["name"])}</a></li>' for entry in board["entries"]
    )
    return f"<p>{escape(board['name'])}</p><ul>{items}</ul>"


def _write_entry(entry: Entry, board: Mapping, folder: Path) -> None:
    content = entry.content
    names = {case[kind] for case in content["images"] for kind in PICTURES}
    pictures = {name: entry.folder / IMAGES_FOLDER / name for name in sorted(names)}
    there = {name: path for name, path in pictures.items() if path.is_file() and not path.is_symlink()}
    addresses = {name: f"../../{address(IMAGES, entry.backbone, entry.name, name)}" for name in there}
    try:
        sections = entry_sections(entry, standing(entry, board), addresses)
    except (LookupError, TypeError, ValueError) as error:
        raise UserError(f"entry {entry.folder} cannot be shown: {error!r}", remedy="riebench validate it") from error
    page = _page(
        "entry.html",
        scripts=("tables.js",),
        title=escape(content["title"]),
        subtitle=escape(f"{content['method']['name']} on {entry.backbone}, {entry.mode} mode"),
        marks=marks(entry),
        back=f"../../{INDEX}#{escape(urlencode({'backbone': board['name']}))}",
        navigation=links_to(sections),
        sections=titled(sections),
    )
    path = folder / PAGES / entry.backbone / f"{entry.name}.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")
    for name, source in there.items():
        target = folder / IMAGES / entry.backbone / entry.name / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)


def _page(template: str, scripts: Sequence[str], **markup: str) -> str:
    """A page out of its template. Its policy allows its own style and script, by their digests, and pictures of the
    site; nothing else."""
    style = f"{_asset('style.css')}\n{_asset('site.css')}"
    script = "\n".join(map(_asset, scripts))
    policy = (
        f"default-src 'none'; style-src {policy_digest(style)}; script-src {policy_digest(script)}; "
        "img-src 'self' file: data:; base-uri 'none'; form-action 'none'"
    )
    return Template(_asset(template)).substitute(policy=policy, style=style, script=script, **markup)


@cache
def _asset(name: str) -> str:
    """A file of the site, or of the report, whose look it shares."""
    own = resources.files(__package__).joinpath("site", name)
    file = own if own.is_file() else resources.files("riebench.report").joinpath(name)
    return file.read_text(encoding="utf-8")


def _move_files(made: Path, out: Path) -> None:
    files = sorted((path for path in made.rglob("*") if path.is_file()), key=lambda path: path == made / INDEX)
    for path in files:
        target = out / path.relative_to(made)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(path, target)
