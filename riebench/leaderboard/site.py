"""The leaderboard's site: static pages out of reviewed entries, which need no network and no server."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import urlencode

from markupsafe import Markup

from riebench.core.claims import claim_folder, refuse_others
from riebench.core.errors import UserError
from riebench.core.files import named_path
from riebench.core.scores import LEAST_COST
from riebench.leaderboard.entries import IMAGES_FOLDER, Entry, linked, read_entries
from riebench.leaderboard.site_board import COLUMNS, board_of, name_of_board, plots_of, standing
from riebench.leaderboard.site_entry import ENVIRONMENT, PICTURES, entry_sections
from riebench.leaderboard.site_words import address
from riebench.report.rendering import asset, content_policy
from riebench.report.words import count_of

INDEX, PAGES, IMAGES = "index.html", "entries", "images"
#: Column of the table -> its head, in order; those of `COLUMNS` stand before `LAST_HEADS`.
FIRST_HEADS = {"rank": "Rank", "method": "Method", "sees": "Sees edited image", "value": "Score"}
LAST_HEADS = {"planted": "Blocks as planted", "features": "Features", "submitted": "Submitted"}


def render_site(entries_root: Path, out: Path) -> Path:
    """Writes the site of the entries below `entries_root` into `out`; returns its `index.html`.

    The pages are made in a temporary folder beside `out`, and then moved to their places one by one, the index last, so
    that a site is never half a page. Other files in a site stay. Raises `UserError` for a folder without entries, an
    entry that cannot be read or shown, two entries of one name on one backbone, and where `out` holds what is no site,
    or cannot be written.
    """
    out = named_path(out)
    refuse_others(out, "site")
    entries = read_entries(named_path(entries_root))
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as made:
            _write_site(entries, Path(made))
            _move_files(Path(made), claim_folder(out, "site"))
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


def _index(boards: Sequence[dict], plots: Sequence[Mapping[str, Markup]]) -> str:
    num_entries = sum(len(board["entries"]) for board in boards)
    columns = [{"key": c.key, "better": c.better, "signed": c.signed} for c in COLUMNS]
    return _page(
        "index.html",
        asset("site/board.js", __package__),
        subtitle=f"{count_of(num_entries, 'entry', 'entries')} on {count_of(len(boards), 'backbone')}.",
        least_cost=LEAST_COST,
        heads={**FIRST_HEADS, **{column.key: column.label for column in COLUMNS}, **LAST_HEADS},
        boards=boards,
        plots=plots,
        data={"backbones": boards, "columns": columns},
    )


def _write_entry(entry: Entry, board: Mapping, folder: Path) -> None:
    content = entry.content
    names = {case[kind] for case in content["images"] for kind in PICTURES}
    pictures = {name: entry.folder / IMAGES_FOLDER / name for name in sorted(names)}
    there = {
        name: path
        for name, path in pictures.items()
        if path.is_file() and not linked(entry.folder, f"{IMAGES_FOLDER}/{name}")
    }
    addresses = {name: f"../../{address(IMAGES, entry.backbone, entry.name, name)}" for name in there}
    try:
        sections = entry_sections(entry, standing(entry, board), addresses)
    except (LookupError, TypeError, ValueError) as error:
        raise UserError(f"entry {entry.folder} cannot be shown: {error!r}", remedy="riebench validate it") from error
    page = _page(
        "entry.html",
        asset("tables.js"),
        title=content["title"],
        subtitle=f"{content['method']['name']} on {entry.backbone}, {entry.mode} mode",
        is_control=entry.is_control,
        sees_edited_image=content["sees_edited_image"],
        back=f"../../{INDEX}#{urlencode({'backbone': board['name']})}",
        sections=sections,
    )
    path = folder / PAGES / entry.backbone / f"{entry.name}.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")
    for name, source in there.items():
        target = folder / IMAGES / entry.backbone / entry.name / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)


def _page(template: str, script: Markup, **values: object) -> str:
    """Returns a page out of its template. Its policy allows its own style and script, by their digests, and pictures of
    the site; nothing else."""
    style = Markup("\n").join([asset("style.css"), asset("site/site.css", __package__)])
    scripts = [script]
    policy = content_policy(style, scripts, images="'self' file: data:")
    return ENVIRONMENT.get_template(template).render(policy=policy, style=style, scripts=scripts, **values)


def _move_files(made: Path, out: Path) -> None:
    files = sorted((path for path in made.rglob("*") if path.is_file()), key=lambda path: path == made / INDEX)
    for path in files:
        target = out / path.relative_to(made)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(path, target)
