"""Entries and pages of the leaderboard beside the planted blocks; those that name none are read as before."""

from __future__ import annotations

import json
import shutil

import pytest
from site_entries import write_entry
from test_leaderboard import BLOCKS, small_set, write_run  # noqa: F401  (a fixture)

from riebench.backbones.table import BACKBONES
from riebench.leaderboard import render_site, submit, validate
from riebench.leaderboard.entries import read_entry
from riebench.leaderboard.site_board import board_of

TURBO = "tinyworld-turbo@1"
#: Of the categories of `write_entry`, every second one has the verdict up.0.1, the others none.
PLANTED = {"add_object": "up.0.1", "change_pose": "mid.0", "change_object": "up.0.1"}


@pytest.fixture(scope="module")
def planted():
    """The planted blocks that are under test in the run of `write_run`."""
    known = BACKBONES.get(TURBO)
    blocks = {name: known.planted_block(name) for name in ("change_object", "change_colour", "change_style")}
    assert set(blocks.values()) == set(BLOCKS)
    return blocks | {name: known.planted_block(name) for name in ("change_background", "change_material")}


@pytest.fixture(scope="module")
def entry(planted, tmp_path_factory):
    run = write_run(tmp_path_factory.mktemp("runs") / "run", planted=planted)
    root = tmp_path_factory.mktemp("board")
    submit(run, root, methods=["sae@1"])
    return root / TURBO / "sae@1"


def changed(entry, tmp_path, change):
    folder = tmp_path / TURBO / "sae@1"
    shutil.copytree(entry, folder)
    content = json.loads((folder / "entry.json").read_text())
    change(content)
    (folder / "entry.json").write_text(json.dumps(content))
    return folder


def test_an_entry_keeps_the_planted_blocks_of_its_run_and_is_valid(entry, planted):
    assert read_entry(entry).content["planted"] == planted and validate(entry) == []


def test_other_planted_blocks_than_the_backbones_are_found(entry, tmp_path):
    def swap(content):
        content["planted"]["change_colour"] = "down.2.1"
        del content["planted"]["change_style"]

    problems = validate(changed(entry, tmp_path, swap))
    assert problems == [
        "planted.change_colour is 'down.2.1', tinyworld-turbo@1 has 'up.0.1'",
        "planted.change_style is missing, tinyworld-turbo@1 has 'up.0.1'",
    ]


def test_an_entry_from_before_it_was_told_is_valid_and_names_none(entry, tmp_path):
    assert validate(changed(entry, tmp_path, lambda content: content.pop("planted"))) == []


def test_pages_count_the_verdicts_that_name_the_planted_block(tmp_path):
    folders = [
        write_entry(tmp_path / "entries", TURBO, "sae", planted=PLANTED),
        write_entry(tmp_path / "entries", TURBO, "dense", planted=PLANTED),  # without effects of blocks
        write_entry(tmp_path / "entries", TURBO, "sae", name="older"),
    ]
    entries = [read_entry(folder) for folder in folders]
    verdicts = {name: row["dominant"] for name, row in entries[0].content["dominance"]["categories"].items()}
    right = sum(verdicts[name]["clip_text_edited"] == block for name, block in PLANTED.items())
    board = board_of(entries, {entry.name: "" for entry in entries})
    assert [one["planted"] for one in board["entries"]] == [[right, 3], None, None] and 0 < right < 3
    site = render_site(tmp_path / "entries", tmp_path / "site").parent
    page, older = ((site / "entries" / TURBO / f"{name}.html").read_text() for name in ("sae", "older"))
    assert f"named by gain in CLIP in {right} of 3 categories" in page and 'class="dot"' in page
    assert "planted" not in older.partition("</style>")[2] and 'class="dot"' not in older
