"""The store: what was added is there again, and what is broken is named and nothing else is lost."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import time
from collections.abc import Callable
from itertools import count
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytest
from forked import CONTEXT, start
from PIL import Image

from riebench.core import files
from riebench.core.errors import UserError
from riebench.core.pictures import read_picture
from riebench.runs.store import Batch, Store, picture_path

NAME = "images/e/42/{}-0123456789ab.png"


def row(number: int, image: str = "", **columns) -> dict:
    keys = {"recipe": f"r{number}", "code": "c", "scoring": "j", "status": "ok" if image else "failed", "image": image}
    return keys | {"edit": "e", "seed": 42, "clip": number / 7} | columns


def picture(number: int, side: int = 16) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (side, side, 3), dtype=np.uint8)


def batch(*numbers: int) -> Batch:
    return Batch([row(n, NAME.format(n)) for n in numbers], {NAME.format(n): picture(n) for n in numbers})


@pytest.fixture
def filled(tmp_path):
    """A run directory of three batches with two results each."""
    folder = tmp_path / "run"
    with Store(folder) as store:
        for start in (0, 2, 4):
            store.add(batch(start, start + 1))
    return folder


def recipes_in(folder: Path, of: int = 6) -> list[int]:
    """Numbers of the rows that are there, and nothing is said to be damaged."""
    with Store(folder) as store:
        assert store.damage == []
        return [n for n in range(of) if store.row(f"r{n}") is not None]


def parts(folder: Path) -> list[Path]:
    return sorted((folder / "parts").glob("*.parquet"))


def test_what_was_added_is_there_again(tmp_path):
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    with Store(tmp_path / "new" / "run") as store:
        assert store.row("r0") is None
        store.add(Batch([], {NAME.format("grey"): grey}))
        store.add(batch(0, 1))
        nan = row(2, **{"clip": float("nan"), "seed": np.int64(7), "reason": "no region", "n": np.float32(0.5)})
        store.add(Batch([nan, row(3, NAME.format("grey"))], {}))
        store.flush()
        before = [store.row(f"r{n}") for n in range(4)]
        assert before[0]["clip"] == 0 and len(before[0]["image_sha256"]) == 64 and before[2]["image_sha256"] == ""
        frame = store.frame(["r3", "r1"])
    assert list(frame.recipe) == ["r3", "r1"] and frame["clip"][1] == 1 / 7 and frame.seed.dtype == np.int64
    assert not list((tmp_path / "new").rglob(".*.png")) and not list((tmp_path / "new").rglob(".*.parquet"))

    with Store(tmp_path / "new" / "run") as store:
        assert store.damage == []
        after = [store.row(f"r{n}") for n in range(4)]
        json.dumps(after)  # plain values
        assert repr(after) == repr(before)
        for n in (0, 1):
            np.testing.assert_array_equal(read_picture(store.folder / after[n]["image"]), picture(n))
        np.testing.assert_array_equal(read_picture(store.folder / after[3]["image"]), grey)
        with pytest.raises(UserError, match="2 of 3 results are not in .*run"):
            store.frame(["r9", "r1", "r8"])


def test_a_later_row_replaces_an_earlier_one(filled):
    with Store(filled) as store:
        store.add(Batch([row(0, NAME.format(1), clip=0.5)], {}))
        store.flush()
        assert store.row("r0")["clip"] == 0.5
    with Store(filled) as store:
        assert store.damage == [] and store.row("r0")["clip"] == 0.5 and store.row("r0")["image"] == NAME.format(1)
        assert len(store.frame([f"r{n}" for n in range(6)])) == 6
    assert len(parts(filled)) == 4 and parts(filled)[-1].name.startswith("000000004-")


def test_what_a_caller_does_to_a_row_stays_with_the_caller(filled):
    with Store(filled) as store:
        store.row("r0")["clip"] = -1
        assert store.row("r0")["clip"] == 0


def test_batches_that_do_not_fit_are_refused_at_once(tmp_path):
    with pytest.raises(ValueError, match="lacks code, image"):
        Batch([{"recipe": "r", "scoring": "j", "status": "ok"}], {})
    for wrong in (np.zeros((4, 4, 3)), np.zeros((4, 4, 4), np.uint8), np.zeros(4, np.uint8)):
        with pytest.raises(ValueError, match="picture a.png is"):
            Batch([], {"a.png": wrong})


def test_a_row_never_names_a_picture_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match="nowhere.png is not there"), Store(tmp_path) as store:
        store.add(Batch([row(0, "images/nowhere.png")], {}))
        with pytest.raises(UserError, match="nowhere.png is not there"):
            store.frame([])
        with pytest.raises(UserError, match="nowhere.png is not there"):
            store.add(batch(1))
    assert recipes_in(tmp_path) == []


@pytest.mark.parametrize("harm", ["truncated", "empty", "garbage", "flipped", "columns"])
def test_a_broken_part_is_named_and_put_aside(filled, harm):
    broken = parts(filled)[1]
    data = bytearray(broken.read_bytes())
    if harm == "flipped":  # in the middle of the values: parquet itself would read on
        data[data.index(b"images/e/42/2") + 1] ^= 1
    if harm == "columns":
        import pandas as pd

        pd.DataFrame({"recipe": ["r2"]}).to_parquet(broken)
    else:
        new = {"truncated": data[:-20], "empty": b"", "garbage": b"\x00garbage" * 99, "flipped": data}[harm]
        broken.write_bytes(new)
    with Store(filled) as store:
        (sentence,) = store.damage
        assert str(broken) in sentence
        assert [store.row(f"r{n}") is not None for n in range(6)] == [True, True, False, False, True, True]
    assert not broken.exists() and broken.with_name(f"{broken.name}.damaged").exists()
    with Store(filled) as store:
        store.add(batch(2, 3))
    assert recipes_in(filled) == [0, 1, 2, 3, 4, 5]


def test_the_last_part_broken_does_not_lend_its_number_again(filled):
    parts(filled)[-1].write_bytes(b"")
    with Store(filled) as store:
        store.add(batch(4, 5))
    assert [path.name[:9] for path in parts(filled)] == ["000000001", "000000002", "000000004"]


def test_strange_files_among_the_parts_do_not_stop_a_run(filled):
    (filled / "parts" / "notes.parquet").write_text("mine")
    (filled / "parts" / "notes.txt").write_text("mine")
    (filled / "parts" / ".000000009-aaaaaaaa.parquet.x1y2_3ab.parquet").write_text("half")
    with Store(filled) as store:
        assert not store.damage
    assert (filled / "parts" / "notes.parquet").read_text() == (filled / "parts" / "notes.txt").read_text() == "mine"
    assert recipes_in(filled) == [0, 1, 2, 3, 4, 5]
    assert not list((filled / "parts").glob(".*")), "what a killed process leaves is removed"


@pytest.mark.parametrize("harm", ["deleted", "flipped", "cut"])
def test_a_broken_picture_is_named_and_its_rows_forgotten(filled, harm):
    with Store(filled) as store:
        store.add(Batch([row(6, NAME.format(3)), row(7)], {}))  # another row of the same picture, one of none
    path = filled / NAME.format(3)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data[:30] if harm == "cut" else data)
    if harm == "deleted":
        path.unlink()
    with Store(filled) as store:
        (sentence,) = store.damage
        assert str(path) in sentence and ("missing" if harm == "deleted" else "changed") in sentence
        assert [n for n in range(8) if store.row(f"r{n}") is None] == [3, 6]
        store.add(batch(3))
        store.add(Batch([row(6, NAME.format(3))], {}))
    assert recipes_in(filled, of=8) == list(range(8))


def hold(folder: Path, said: Connection) -> None:
    """What another process does: it opens the folder and keeps it."""
    with Store(folder):
        said.send("open")
        time.sleep(60)


def fill(folder: Path, said: Connection) -> None:
    """What another process does: it goes on to add batches of three."""
    with Store(folder) as store:
        assert store.damage == [], store.damage
        first = next(n for n in count(0, 3) if store.row(f"r{n}") is None)
        said.send(first)
        for n in count(first, 3):
            store.add(batch(n, n + 1, n + 2))


def started(target: Callable[[Path, Connection], None], folder: Path) -> CONTEXT.Process:
    """Another process, which has said its first word."""
    heard, said = CONTEXT.Pipe(duplex=False)
    process = start(target, folder, said)
    said.close()
    heard.recv()
    return process


@pytest.mark.slow
@pytest.mark.process
def test_a_second_process_is_refused_until_the_first_is_gone(tmp_path):
    holder = started(hold, tmp_path)
    try:
        for _ in range(2):
            with pytest.raises(UserError, match=rf"another riebench \(process {holder.pid}\b.*writing to .* -> wait"):
                Store(tmp_path).__enter__()
    finally:
        holder.kill()
        holder.join()
    assert recipes_in(tmp_path) == []


def test_one_process_cannot_open_a_folder_twice(tmp_path):
    with Store(tmp_path) as store:
        with pytest.raises(UserError, match=f"process {os.getpid()}"), Store(tmp_path):
            pass
        store.add(batch(0))
    assert recipes_in(tmp_path) == [0]


@pytest.mark.slow
@pytest.mark.process
def test_a_process_that_is_killed_leaves_only_whole_things(tmp_path):
    chance, kept = random.Random(5), 0
    for _ in range(5):
        writer = started(fill, tmp_path)
        time.sleep(0.03 + 0.2 * chance.random())
        writer.kill()
        writer.join()
        with Store(tmp_path) as store:
            assert store.damage == []
            last = next(n for n in range(10**6) if store.row(f"r{n}") is None)
            assert last % 3 == 0 and last >= kept, "batches are there whole, and in order"
            assert len(store.frame([f"r{n}" for n in range(last)])) == last
            kept = last
        for n in range(max(0, last - 9), last):
            np.testing.assert_array_equal(read_picture(tmp_path / NAME.format(n)), picture(n))
        assert not [path for path in tmp_path.rglob(".*") if path.suffix in (".png", ".parquet")]
    assert kept > 0


@pytest.mark.parametrize("kind", [".png", ".parquet"])
def test_a_full_disk_is_said_and_what_was_written_stays(filled, monkeypatch, kind):
    replace, written = os.replace, []

    def full(source, target):
        if str(target).endswith(kind):
            written.append(target)
            if len(written) > 2:
                raise OSError(errno.ENOSPC, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(files.os, "replace", full)
    with pytest.raises(UserError, match="cannot write .*No space left on device"), Store(filled) as store:
        for n in range(6, 100):
            store.add(batch(n))
            time.sleep(0.01)
    assert n < 99, "the error came while the run went on"
    monkeypatch.undo()
    assert recipes_in(filled, of=100) == [0, 1, 2, 3, 4, 5, 6, 7]


def test_the_error_comes_at_the_next_add_at_flush_and_at_the_end(tmp_path, monkeypatch):
    def full(source, target):
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(UserError, match="No space left"), Store(tmp_path) as store:  # at the end
        monkeypatch.setattr(files.os, "replace", full)
        store.add(batch(0))
        with pytest.raises(UserError, match="No space left"):
            store.flush()
        with pytest.raises(UserError, match="No space left"):
            store.add(batch(1))
    monkeypatch.undo()
    with pytest.raises(RuntimeError, match="mine"), Store(tmp_path) as store:  # does not hide another error
        monkeypatch.setattr(files.os, "replace", full)
        store.add(batch(0))
        raise RuntimeError("mine")
    monkeypatch.undo()
    assert recipes_in(tmp_path) == []


def test_what_was_added_before_an_error_is_written(tmp_path):
    with pytest.raises(RuntimeError, match="mine"), Store(tmp_path) as store:
        store.add(batch(0))
        raise RuntimeError("mine")
    assert recipes_in(tmp_path) == [0]


@pytest.mark.parametrize("how", ["removed", "renamed", "remade"])
def test_a_folder_that_vanishes_is_not_made_anew(filled, how):
    with pytest.raises(UserError, match="run directory .*run has vanished.* -> run the same"), Store(filled) as store:
        store.add(batch(6))
        store.flush()
        if how == "removed":
            shutil.rmtree(filled)
        else:
            filled.rename(filled.with_name("elsewhere"))
        if how == "remade":
            with Store(filled):
                pass
        store.add(batch(7))
        store.flush()
    if how == "remade":
        assert recipes_in(filled, of=8) == []
    else:
        assert not filled.exists()
    if how != "removed":
        assert recipes_in(filled.with_name("elsewhere"), of=8) == [0, 1, 2, 3, 4, 5, 6]


def test_folders_that_cannot_be_written_are_user_errors(tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "run", Path("/proc/riebench")):
        with pytest.raises(UserError, match="cannot write to"), Store(folder):
            pass


def test_adopting_takes_what_is_lacking_and_whole(filled, tmp_path):
    (filled / NAME.format(1)).write_bytes(b"broken")
    broken = parts(filled)[2]
    broken.write_bytes(b"broken")
    with Store(tmp_path / "new") as store:
        store.add(Batch([row(0, NAME.format(0), clip=0.25)], {NAME.format(0): picture(50)}))
        assert store.adopt(filled, dict.fromkeys([f"r{n}" for n in range(6) if n != 3], "c")) == 1
        assert len(store.damage) == 2
        assert str(filled / NAME.format(1)) in " ".join(store.damage) and str(broken) in " ".join(store.damage)
        assert [n for n in range(6) if store.row(f"r{n}")] == [0, 2]
        assert store.adopt(filled, dict.fromkeys(["r2"], "c")) == 0
    assert broken.exists(), "the other folder stays as it is"
    assert recipes_in(tmp_path / "new") == [0, 2]
    shutil.rmtree(filled)
    new = tmp_path / "new"
    np.testing.assert_array_equal(read_picture(new / NAME.format(0)), picture(50))
    np.testing.assert_array_equal(read_picture(new / NAME.format(2)), picture(2))


def test_a_row_of_another_code_gives_way_to_the_wanted_one_alone(filled, tmp_path):
    with Store(tmp_path / "new") as store:
        store.add(Batch([row(0, NAME.format(7)) | {"code": "old"}], {NAME.format(7): picture(50)}))
        assert store.adopt(filled, {"r0": "newer"}) == 0 and store.row("r0")["code"] == "old"
        assert store.adopt(filled, {"r0": "c"}) == 1 and store.row("r0")["code"] == "c"


def test_a_shared_picture_that_differs_is_not_adopted(filled, tmp_path):
    with Store(tmp_path / "new") as store:
        store.add(Batch([row(10, NAME.format(0))], {NAME.format(0): picture(50)}))
        assert store.adopt(filled, dict.fromkeys(["r0", "r1"], "c")) == 1
    assert recipes_in(tmp_path / "new", of=11) == [1, 10]


def test_adopting_where_links_are_not_possible_copies(filled, tmp_path, monkeypatch):
    def no_links(*_, **__):
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", no_links)
    with Store(tmp_path / "new") as store:
        assert store.adopt(filled, dict.fromkeys([f"r{n}" for n in range(6)], "c")) == 6
    assert recipes_in(tmp_path / "new") == list(range(6))


def test_adopting_from_a_run_that_goes_on_needs_no_lock(filled, tmp_path):
    with Store(filled), Store(tmp_path / "new") as store:
        assert store.adopt(filled, dict.fromkeys(["r0"], "c")) == 1
        assert store.adopt(filled, dict.fromkeys(["r0", "r1"], "c")) == 1


def test_adopting_from_nothing_is_a_user_error(tmp_path):
    (tmp_path / "empty").mkdir()
    with Store(tmp_path / "new") as store:
        with pytest.raises(UserError, match="absent does not exist"):
            store.adopt(tmp_path / "absent", dict.fromkeys(["r0"], "c"))
        with pytest.raises(UserError, match="empty holds no results"):
            store.adopt(tmp_path / "empty", dict.fromkeys(["r0"], "c"))


@pytest.mark.parametrize(
    "name",
    [
        "../x",
        "a/b",
        "..",
        ".",
        ".hidden",
        "ü ",
        "a\\b",
        "C:x",
        "a" * 300,
        "ü" * 300,
        "x%2F",
        "n\nl",
        "a.",
        "sae@1-up.0.0+mid.0",
    ],
)
def test_paths_of_pictures_are_safe_whatever_the_names_are(tmp_path, name):
    path = picture_path(name, 42, name, "0123456789abcdef")
    folder, *middle, last = path.split("/")
    assert (folder, len(middle), middle[1]) == ("images", 2, "42")
    assert last.endswith("-0123456789ab.png") and path.isascii()
    for part in (middle[0], last):
        assert len(part) < 120 and not part.startswith(".") and not part.endswith(".")
        assert set(part) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789@+.,=_-%~")
    with Store(tmp_path) as store:
        store.add(Batch([row(0, path)], {path: picture(0)}))
    assert recipes_in(tmp_path) == [0]
    assert {entry.name for entry in tmp_path.iterdir() if not entry.name.startswith(".")} == {"images", "parts"}


def test_unlike_names_have_unlike_paths():
    names = ["a", "A", "a/b", "a%2Fb", "..", "%2E.", "ü", "u", "a" * 300, "a" * 301, "ü" * 300]
    assert len({picture_path(name, 1, "sae", "0" * 12).split("/")[1] for name in names}) == len(names)
    assert picture_path("e", 1, "sae@1", "0" * 32) != picture_path("e", 1, "sae@1", "1" * 32)
    assert picture_path("change_object-01", 42, "sae@1-up.0.0", "a" * 32).endswith(
        "change_object-01/42/sae@1-up.0.0-aaaaaaaaaaaa.png"
    )


def test_broken_pictures_are_named(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(picture(1)).save(path)
    whole = path.read_bytes()
    assert read_picture(path).flags.writeable
    chance = random.Random(3)
    for _ in range(200):
        data = bytearray(whole)
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        path.write_bytes(data[: chance.randrange(len(data))] if chance.random() < 0.5 else data)
        try:
            found = read_picture(path)
        except UserError as error:
            assert str(path) in str(error)
        else:
            assert found.dtype == np.uint8
    with pytest.raises(UserError, match="absent.png"):
        read_picture(tmp_path / "absent.png")
    Image.fromarray(picture(1)).convert("RGBA").save(path)
    np.testing.assert_array_equal(read_picture(path), picture(1))
