"""Edits in files and out of them: formats, places of errors, categories, masks, splits, hashes."""

import hashlib
import json
import re
import shutil
import subprocess
import sys
from dataclasses import asdict, replace

import numpy as np
import pytest
from PIL import Image

from riebench.core.errors import UserError
from riebench.core.files import data_folder
from riebench.edits.edit import (
    CATEGORIES,
    CATEGORY_NAMES,
    Category,
    Edit,
    categories_of,
    edit_sha256,
    load_edits,
    mask_of,
    read_edits,
    region_of,
    set_sha256,
    shipped_sets,
    split_of,
    write_edits,
)
from riebench.edits.sets import describe_set, read_set_file

BOAT = Edit("boat", "change_colour", "a red boat, moored", "a blue boat, moored", "boat", "boat", "make it blue")
CAT = Edit("7", "add_object", "a sofa", "a sofa with a cat", "cat", "cat", tags={"split": "dev", "look": "photo"})

YAML = """\
# a comment
- id: boat
  category: change_colour
  original_prompt: a red boat, moored
  edited_prompt: a blue boat, moored
  original_region: boat
  edited_region: boat
  instruction: make it blue
- id: 7
  category: add_object
  original_prompt: a sofa
  edited_prompt: a sofa with a cat
  original_region: cat
  edited_region: cat
  tags: {split: dev, look: photo}
"""
CSV = """\
\ufeffid,category,original_prompt,edited_prompt,original_region,edited_region,instruction,tags.split,tags.look
boat,change_colour,"a red boat, moored","a blue boat, moored",boat,boat,make it blue,,

7,add_object,a sofa,a sofa with a cat,cat,cat,,dev,photo
"""
LINES = "".join(json.dumps(asdict(edit)) + "\n" for edit in (BOAT, CAT))


def row(**values) -> dict:
    return {**asdict(BOAT), **values}


def yaml_of(*items: dict, categories: str = "") -> str:
    head = f"categories: {categories}\n" if categories else ""
    return head + "edits:\n" + "".join(f"- {json.dumps(item)}\n" for item in items)


@pytest.mark.parametrize(("name", "text"), [("e.yaml", YAML), ("e.yml", YAML), ("e.csv", CSV), ("e.jsonl", LINES)])
def test_the_three_formats_hold_the_same_edits(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    for path in (tmp_path / name, tmp_path):
        edits = read_edits(path)
        assert edits == [CAT, BOAT]  # in the order of the categories
        assert [edit.tags for edit in edits] == [CAT.tags, {}]


def test_a_folder_may_mix_formats_and_holds_other_files_too(tmp_path):
    (tmp_path / "a.csv").write_text(CSV)
    (tmp_path / "b.yaml").write_text(yaml_of(row(id="other")))
    for name in ("notes.txt", "set.json", "mask.png"):
        (tmp_path / name).write_text("no edit")
    assert [edit.id for edit in read_edits(tmp_path)] == ["7", "boat", "other"]


def test_everything_wrong_is_told_at_once_with_file_line_field_value_and_remedy(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(
        "edits:\n"
        "  - id: a\n"  # line 2
        "    category: change_coulour\n"
        "    original_prompt: x\n"
        "    edited_prompt: y\n"
        "    original_region: z\n"
        "    edited_rgion: z\n"
        "  - id: b\n"  # line 8
        "    category: change_pose\n"
        "    original_prompt: ''\n"
        "    edited_prompt: y\n"
        "    original_region: z\n"
        "    edited_region: z\n"
        "    edited_region: zz\n"  # line 14
        "  - just text\n"  # line 15
    )
    with pytest.raises(UserError) as raised:
        read_edits(path)
    said = str(raised.value)
    assert f"{path} has 6 problems" in said
    for line, what, remedy in (
        (2, "unknown category 'change_coulour'; did you mean 'change_colour'?", "use one of change_object"),
        (2, "unknown key 'edited_rgion'; did you mean 'edited_region'?", "the keys are id"),
        (2, "edited_region is missing", "an edit has id"),
        (8, "original_prompt is empty", "fill it in"),
        (14, "the key 'edited_region' stands twice", "remove one"),
        (15, "an edit is 'just text'", "write its keys"),
    ):
        assert re.search(re.escape(f"{path}, line {line}: {what}") + r"[^;]* -> " + re.escape(remedy), said), what


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("e.yaml", "edits:\n- id: [a] cat\n", "line 2: not YAML.*wants quotes"),
        ("e.yaml", "edits: []\0\n", "line 1: cannot be read: the byte 0x00 at place 9"),
        ("e.yaml", "", "holds no edits"),
        ("e.yaml", "edits: none\n", "line 1: edits is no list"),
        ("e.yaml", "edit: []\n", "line 1: unknown key 'edit'; did you mean 'edits'"),
        ("e.yaml", yaml_of(row(), categories="{a: b}"), "line 1: categories is no list"),
        ("e.csv", CSV.replace('"a red boat, moored"', "a red boat, moored"), "line 2: the row has 10 cells.*quotes"),
        ("e.csv", CSV.replace("tags.look", "look"), "line 4: unknown key 'look'"),
        ("e.csv", CSV.replace("instruction", "id"), "line 1: columns that stand twice: id"),
        ("e.csv", CSV.replace('"a red', '"a" red'), "line 2: not CSV"),
        ("e.jsonl", LINES + '{"id": 3}', "line 3: id 3 is no text.*quotes"),
        ("e.jsonl", LINES + "[]\n{", r"line 3: not a JSON object.*\(2\).*line 4: not JSON"),
        ("e.jsonl", json.dumps(row(tags={"look": 1})), "line 1: tags {'look': 1} are no names with texts"),
        ("e.jsonl", LINES + LINES, "line 3: the id 'boat' stands twice, first in .*line 1"),
        ("e.txt", LINES, "ends in .jsonl, .yaml, .yml, .csv"),
    ],
)
def test_errors_of_each_format(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=f"(?s){message}"):
        read_edits(tmp_path / name)


def test_a_wrong_column_is_told_of_once(tmp_path):
    rows = "".join(f"{i},change_pose,x,y,z,z,oops\n" for i in range(50))
    head = "id,category,original_prompt,edited_prompt,original_region,edited_region,colour\n"
    (tmp_path / "e.csv").write_text(head + rows)
    with pytest.raises(UserError, match=r"^[^;]*line 2: unknown key 'colour'[^;]*$"):
        read_edits(tmp_path / "e.csv")


def test_many_problems_are_counted_and_the_first_shown(tmp_path):
    (tmp_path / "e.yaml").write_text(yaml_of(*(row(id=f"e{i}", category="nonsense") for i in range(40))))
    with pytest.raises(UserError, match="has 40 problems") as raised:
        read_edits(tmp_path / "e.yaml")
    assert str(raised.value).count("nonsense") == 8 and str(raised.value).endswith("and 32 more")


def test_own_categories_are_declared_and_stand_behind_the_nine(tmp_path):
    items = [row(id=f"{i}", category=name) for i, name in enumerate(("season", "change_style", "mood", "season"))]
    path = tmp_path / "e.yaml"
    path.write_text(yaml_of(*items))
    with pytest.raises(UserError, match="unknown category 'mood'.*declare it under `categories:`"):
        read_edits(path)
    path.write_text(yaml_of(*items, categories="[mood, season]"))
    edits = read_edits(path)
    assert [edit.category for edit in edits] == ["change_style", "season", "season", "mood"]
    assert categories_of(edits) == ("change_style", "season", "mood")
    (tmp_path / "categories.yaml").write_text("categories: [mood, season]\n")
    lines = tmp_path / "e.jsonl"
    write_edits(edits, lines)
    assert read_edits(lines) == edits
    (tmp_path / "e.yaml").unlink()
    assert read_edits(tmp_path) == edits


@pytest.mark.parametrize("name", ["change_color", "chnge_object", "Mood", "my mood", "9lives"])
def test_a_slip_in_a_category_is_no_new_category_even_in_python(name):
    with pytest.raises(UserError, match=f"edit 'boat': unknown category '{name}'"):
        replace(BOAT, category=name)
    assert replace(BOAT, category="change_season").category == "change_season"


def test_fields_that_are_empty_or_no_text_are_all_named():
    with pytest.raises(UserError, match="original_prompt is empty; edited_region 3 is no text"):
        replace(BOAT, original_prompt=" ", edited_region=3)


def test_masks_lie_beside_their_file_wherever_that_is_moved(tmp_path):
    home, away = tmp_path / "home", tmp_path / "away"
    (home / "masks").mkdir(parents=True)
    Image.fromarray(np.full((4, 4), 255, dtype=np.uint8)).save(home / "masks" / "a.png")
    (home / "e.yaml").write_text(
        yaml_of(row(original_region="mask:masks/a.png", edited_region="not mask: masks/a.png"))
    )
    (edit,) = read_edits(home / "e.yaml")
    assert mask_of(edit.original_region) == mask_of(edit.edited_region) == home / "masks" / "a.png"
    assert edit.edited_region.startswith("not mask:") and mask_of("not a mask") is None
    write_edits([edit], home / "e.jsonl")
    assert "mask:masks/a.png" in (home / "e.jsonl").read_text()
    shutil.move(home, away)
    (moved,) = read_edits(away / "e.jsonl")
    assert mask_of(moved.original_region) == away / "masks" / "a.png"
    assert moved != edit and edit_sha256(moved) == edit_sha256(edit)
    write_edits([moved], tmp_path / "elsewhere" / "e.jsonl")  # a mask outside the file's folder is still found
    (far,) = read_edits(tmp_path / "elsewhere" / "e.jsonl")
    assert mask_of(far.original_region).samefile(away / "masks" / "a.png")


def test_hashes_are_of_content_alone():
    by_hand = '["change_colour", "a red boat, moored", "a blue boat, moored", "boat", "boat"]'
    assert edit_sha256(BOAT) == hashlib.sha256(by_hand.encode()).hexdigest()
    assert edit_sha256(replace(BOAT, id="x", instruction="x", tags={"split": "dev"})) == edit_sha256(BOAT)
    fields = ("category", "original_prompt", "edited_prompt", "original_region", "edited_region")
    others = [replace(BOAT, **{name: "change_pose"}) for name in fields]
    assert len({edit_sha256(edit) for edit in [BOAT, *others]}) == 6
    assert set_sha256([BOAT, CAT]) == set_sha256([CAT, BOAT]) != set_sha256([CAT, CAT, BOAT])


def test_splits():
    edits = [BOAT, CAT, replace(CAT, id="8", tags={"split": "test"})]
    assert split_of(edits, "all") == edits
    assert [edit.id for edit in split_of(edits, "dev")] == ["7"]
    assert [edit.id for edit in split_of(edits, "test")] == ["8"]
    with pytest.raises(UserError, match="unknown split 'tets'; did you mean 'test'"):
        split_of(edits, "tets")
    with pytest.raises(UserError, match="no edit belongs to the split 'dev'.*ask for all"):
        split_of([BOAT], "dev")


def test_what_a_set_says_of_itself(tmp_path):
    assert shipped_sets() == ["riebench", "tinyworld"]
    splits_of = {"riebench": {"dev": 180, "test": 360}, "tinyworld": {}}
    for name, licence in (("riebench", "CC-BY-4.0"), ("tinyworld", "Apache-2.0")):
        found = describe_set(name)
        assert found == {
            "name": name,
            "version": "1",
            "licence": licence,
            "sha256": set_sha256(load_edits(name)),
            "count": 540,
            "splits": splits_of[name],
        }
    write_edits([BOAT, CAT], tmp_path / "mine.jsonl")
    bare = describe_set(tmp_path / "mine.jsonl")
    assert (bare["name"], bare["version"], bare["licence"], bare["splits"]) == ("mine", "", "", {"dev": 1})


def test_a_set_that_was_changed_is_not_the_version_it_says(tmp_path):
    shutil.copytree(path := load_folder("riebench"), tmp_path / "riebench")
    copied = tmp_path / "riebench"
    assert describe_set(copied) == describe_set(path)
    file = copied / "change_pose.jsonl"
    file.write_text(file.read_text().replace("surfer", "swimmer"))
    with pytest.raises(UserError, match="not those of version 1 of 'riebench'"):
        describe_set(copied)
    (copied / "set.json").write_text('{"name": "riebench"}')
    with pytest.raises(UserError, match="has not the keys of a set"):
        read_set_file(copied)


def load_folder(name):
    return data_folder() / "edits" / name


def test_shipped_edits_are_written_again_to_the_byte(tmp_path):
    for name in CATEGORY_NAMES:
        file = load_folder("riebench") / f"{name}.jsonl"
        write_edits(read_edits(file), tmp_path / file.name)
        assert (tmp_path / file.name).read_bytes() == file.read_bytes()


@pytest.mark.process
def test_reading_edits_needs_neither_torch_nor_pandas():
    code = "import sys; from riebench.edits.sets import describe_set; describe_set('riebench')"
    code += "; print([name for name in ('torch', 'pandas') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


@pytest.mark.parametrize(
    ("number", "name", "region"),
    [
        (1, "change_object", "own"),
        (2, "add_object", "edited"),
        (3, "delete_object", "original"),
        (4, "change_content", "own"),
        (5, "change_pose", "own"),
        (6, "change_colour", "own"),
        (7, "change_material", "own"),
        (8, "change_background", "own"),
        (9, "change_style", "own"),
    ],
)
def test_whose_region_counts_in_each_of_the_nine_categories(number, name, region):
    """As the table of protocol section 4 says."""
    category = CATEGORIES[number - 1]
    assert len(CATEGORIES) == 9 and (category.id, category.name, category.region) == (number, name, region)
    assert region_of(name) == region and category.title == name.replace("_", " ")


def test_in_a_category_of_one_s_own_each_image_has_its_own_region():
    assert region_of("change_season") == region_of("my_own") == Category(10, "my_own", "my own").region == "own"
