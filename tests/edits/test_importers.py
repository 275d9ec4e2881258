"""Published lists come over whole: every quirk of theirs on small lists made here, and nothing vanishes in silence."""

import json

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

from riebench.core.errors import UserError
from riebench.edits.checks import validate_edits
from riebench.edits.edit import CATEGORY_NAMES, mask_of, read_edits, strip_marks
from riebench.edits.importers import format_imported, import_edits, import_pie_bench, import_riebench
from riebench.edits.importers.pie_bench import decode_mask
from riebench.edits.sets import describe_set
from riebench.regions.grounding import parse_phrase


def item(id="a1", kind="1", **values):
    return {
        "id": id,
        "editing_type_id": kind,
        "original_prompt": "a [bronze] owl on a   gate",
        "editing_prompt": "a [straw] owl on a gate",
        "editing_instruction": "make the owl of straw",
        "original_gsam_prompt": "owl",
        "editing_gsam_prompt": "owl",
        **values,
    }


def published(tmp_path, *items):
    path = tmp_path / "list.json"
    path.write_text(json.dumps(items))
    return path


def test_all_nine_categories_come_over_and_round_trip(tmp_path):
    kinds = [item(f"{i}", kind=str(i) if i % 2 else i, editing_prompt=f"a straw owl, number {i}") for i in range(1, 10)]
    path = published(tmp_path, *kinds)
    imported = import_edits("riebench", path, tmp_path / "out")
    assert [edit.category for edit in imported.edits] == list(CATEGORY_NAMES) and not imported.refused
    assert imported.edits[0].original_prompt == "a [bronze] owl on a gate"  # with its marks, single-spaced
    assert imported.edits[0].instruction == "make the owl of straw"
    assert read_edits(tmp_path / "out") == list(imported.edits)
    assert sorted(file.name for file in (tmp_path / "out").glob("*.jsonl")) == sorted(
        f"{c}.jsonl" for c in CATEGORY_NAMES
    )
    assert validate_edits(tmp_path / "out") == []
    described = describe_set(tmp_path / "out")
    assert (described["name"], described["count"], described["licence"]) == ("imported-riebench", 9, "not stated")


def test_blanks_at_the_end_of_a_prompt_stay_and_change_nothing_that_a_text_encoder_reads(tmp_path):
    prompts = {"original_prompt": "a [bronze] owl on a  gate ", "editing_prompt": "  a [straw] owl on a gate [] \t"}
    path = published(tmp_path, item(**prompts))
    imported = import_edits("riebench", path, tmp_path / "out")
    (edit,) = read_edits(tmp_path / "out")
    assert imported.edits == (edit,) and validate_edits(tmp_path / "out") == []
    assert edit.original_prompt == "a [bronze] owl on a gate "
    assert edit.edited_prompt == "a [straw] owl on a gate [] \t"
    tokenizer = open_clip.get_tokenizer("ViT-L-14")
    for published_prompt, ours in zip(prompts.values(), (edit.original_prompt, edit.edited_prompt), strict=True):
        bare = published_prompt.replace("[", "").replace("]", "")
        assert torch.equal(tokenizer([bare]), tokenizer([strip_marks(ours)]))
        assert torch.equal(tokenizer([published_prompt]), tokenizer([ours]))
    same = import_riebench(published(tmp_path, item(editing_prompt="a bronze owl on a gate ")))
    assert [problem.field for problem in same.refused] == ["editing_prompt"]


@pytest.mark.parametrize(
    ("theirs", "ours", "nouns", "complement"),
    [
        ("owl", "owl", ("owl",), False),
        ("#everything", "everything", (), False),
        ("#Everything", "everything", (), False),
        ("background", "background", ("foreground",), True),
        ("~owl", "not owl", ("owl",), True),
        ("~ #everything owl", None, None, None),
        ("~~owl", "not not owl", ("owl",), False),
        ("~background", "not background", ("foreground",), False),
        ("chain, star", "chain, star", ("chain", "star"), False),
        ("~chain, star", "not chain, star", ("chain", "star"), True),
        ("sky background", "sky background", ("sky background",), False),
        ("", None, None, None),
        ("~", None, None, None),
        (" , ", None, None, None),
        ("~#everything", None, None, None),
        ("#nothing", None, None, None),
        ("owl ~gate", None, None, None),
        ("mask:/etc/passwd", None, None, None),
    ],
)
def test_region_phrases(tmp_path, theirs, ours, nouns, complement):
    imported = import_riebench(published(tmp_path, item(editing_gsam_prompt=theirs)))
    if ours is None:
        (problem,) = imported.refused
        assert not imported.edits and (problem.id, problem.field) == ("a1", "editing_gsam_prompt")
        assert repr(theirs.strip()) in str(problem) and problem.file == str(tmp_path / "list.json")
    else:
        (edit,) = imported.edits
        assert edit.edited_region == ours and edit.original_region == "owl"
        phrase = parse_phrase(edit.edited_region)
        assert (phrase.nouns, phrase.complement) == (nouns, complement)


def test_a_region_that_does_not_count_may_be_empty(tmp_path):
    """Adding uses the edited image's region on both, deleting the original's (protocol §4)."""
    adds = item("add", "2", original_gsam_prompt="", editing_gsam_prompt="hat")
    deletes = item("delete", "3", original_gsam_prompt="hat", editing_gsam_prompt="")
    wrong = [
        item("no-hat", "2", original_gsam_prompt="hat", editing_gsam_prompt=""),
        item("both", "5", original_gsam_prompt=""),
    ]
    imported = import_riebench(published(tmp_path, adds, deletes, *wrong))
    assert [(e.id, e.original_region, e.edited_region) for e in imported.edits] == [
        ("add", "hat", "hat"),
        ("delete", "hat", "hat"),
    ]
    assert [(p.id, p.field) for p in imported.refused] == [
        ("no-hat", "editing_gsam_prompt"),
        ("both", "original_gsam_prompt"),
    ]


def test_every_item_is_taken_dropped_or_refused_with_its_reason(tmp_path):
    items = [
        item("good"),
        item("random", "0"),
        item("random-too", 0),
        item("good"),
        item("ten", "10"),
        item("true", True),
        item("same", editing_prompt="a bronze owl [on a gate]"),
        item("blank", original_prompt=" [] "),
        item("list", editing_prompt=["x"]),
        {key: value for key, value in item().items() if key != "id"},
        {key: value for key, value in item("keyless").items() if key != "editing_type_id"},
        "no item",
    ]
    imported = import_riebench(published(tmp_path, *items))
    assert [edit.id for edit in imported.edits] == ["good"] and sum(imported.dropped.values()) == 2
    said = {(p.id, p.field): p.what for p in imported.refused}
    assert said == {
        ("good", "id"): "id 'good' stands twice",
        ("ten", "editing_type_id"): "editing_type_id '10' is no category from 1 to 9",
        ("true", "editing_type_id"): "editing_type_id 'True' is no category from 1 to 9",
        ("same", "editing_prompt"): "editing_prompt 'a bronze owl [on a gate]' is the same as original_prompt",
        ("blank", "original_prompt"): "original_prompt ' [] ' is empty",
        ("list", "editing_prompt"): "editing_prompt \"['x']\" is no text",
        ("item 10", "id"): "id '' is missing",
        ("keyless", "editing_type_id"): "editing_type_id '' is no category from 1 to 9",
        ("item 12", "item"): "item 'no item' is no JSON object",
    }
    assert 1 + 2 + len(imported.refused) == len(items)
    text = format_imported(imported)
    assert "1 edits taken" in text and "2 dropped: of category 0 (random)" in text and "9 refused" in text
    assert all(str(problem) in text for problem in imported.refused)


def test_what_is_no_list_and_a_folder_in_use_are_user_errors(tmp_path):
    path = tmp_path / "list.json"
    for text, message in (("{}", "holds a dict"), ("[", "cannot be read as JSON"), ("[]", "holds no edit")):
        path.write_text(text)
        with pytest.raises(UserError, match=message):
            import_edits("riebench", path, tmp_path / "out")
    with pytest.raises(UserError, match="absent.json does not exist"):
        import_edits("riebench", tmp_path / "absent.json", tmp_path / "out")
    with pytest.raises(UserError, match="no category from 1 to 9"):
        import_edits("riebench", published(tmp_path, item(kind="x")), tmp_path / "out")
    with pytest.raises(UserError, match="did you mean 'pie-bench'"):
        import_edits("piebench", path, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match="is not empty"):
        import_edits("riebench", published(tmp_path, item()), tmp_path)


def pie(kind="1", mask=(0, 512), **values):
    return {
        "image_path": "1_change/artificial/x.jpg",
        "original_prompt": "a [bronze] owl",
        "editing_prompt": "a [straw] owl",
        "editing_instruction": "make it of straw",
        "blended_word": "owl owl",
        "editing_type_id": kind,
        "mask": list(mask),
        **values,
    }


def mapping(tmp_path, **items):
    path = tmp_path / "mapping_file.json"
    path.write_text(json.dumps(items))
    return path


def slow_mask(runs):
    """A pixel at a time, over the rows strung together."""
    pixels = [[False] * 512 for _ in range(512)]
    for start, length in zip(runs[::2], runs[1::2], strict=True):
        for flat in range(start, min(start + length, 512 * 512)):
            pixels[flat // 512][flat % 512] = True
    return np.array(pixels)


@pytest.mark.parametrize(
    "runs",
    [[], [0, 1], [0, 512 * 512], [511, 2], [512 * 512 - 1, 1], [512 * 511 + 500, 9999], [700, 50, 720, 10, 5000, 0]],
)
def test_run_lengths_pixel_by_pixel(runs):
    np.testing.assert_array_equal(decode_mask(runs), slow_mask(runs))


def test_random_masks_come_back_from_their_run_lengths():
    rng = np.random.default_rng(0)
    mask = np.repeat(np.repeat(rng.random((16, 16)) < 0.4, 32, axis=0), 32, axis=1)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], mask.ravel().astype(int), [0]])))
    runs = [int(x) for start, end in edges.reshape(-1, 2) for x in (start, end - start)]
    np.testing.assert_array_equal(decode_mask(runs), mask)


def test_pie_bench_masks_become_files_and_round_trip(tmp_path):
    runs = [512 * 10 + 20, 30, 512 * 11 + 20, 30]
    path = mapping(tmp_path, **{"000": pie(mask=runs), "111": pie("9", mask=[0, 512 * 512]), "222": pie("0")})
    imported = import_edits("pie-bench", path, tmp_path / "out")
    assert not imported.refused and sum(imported.dropped.values()) == 1
    edits = read_edits(tmp_path / "out")
    assert [edit.category for edit in edits] == ["change_object", "change_style"]
    first = edits[0]
    assert first.original_region == first.edited_region and first.tags["blended_word"] == "owl owl"
    assert mask_of(first.original_region) == tmp_path / "out" / "masks" / "000.png"
    with Image.open(mask_of(first.original_region)) as picture:
        assert picture.mode == "L"
        np.testing.assert_array_equal(np.array(picture), np.where(slow_mask(runs), 255, 0))
    assert validate_edits(tmp_path / "out") == []


@pytest.mark.parametrize(
    ("mask", "what"),
    [
        ([], "is empty"),
        ([5, 0], "is empty"),
        ([1, 2, 3], "no list of pairs"),
        ("1 2", "no list of pairs"),
        (None, "no list of pairs"),
        ([0, 1.5], "no whole number"),
        ([0, True], "no whole number"),
        ([-1, 5], "not in 512 x 512"),
        ([512 * 512, 1], "not in 512 x 512"),
        ([3, -2], "not in 512 x 512"),
    ],
)
def test_masks_that_cannot_be_read_are_refused(tmp_path, mask, what):
    path = mapping(tmp_path, good=pie(), bad={**pie(), "mask": mask})
    imported = import_pie_bench(path, tmp_path / "masks")
    assert [edit.id for edit in imported.edits] == ["good"]
    assert [(p.id, p.field) for p in imported.refused] == [("bad", "mask")] and what in imported.refused[0].what
    assert [file.name for file in (tmp_path / "masks").iterdir()] == ["good.png"]


def test_a_pie_bench_id_names_a_file_and_stands_once(tmp_path):
    imported = import_pie_bench(mapping(tmp_path, **{"../up": pie(), "ok": pie()}), tmp_path / "masks")
    assert [p.id for p in imported.refused] == ["../up"] and [e.id for e in imported.edits] == ["ok"]
    path = tmp_path / "twice.json"
    path.write_text('{"a": {}, "a": {}}')
    with pytest.raises(UserError, match="'a' stands twice"):
        import_pie_bench(path, tmp_path / "masks")
