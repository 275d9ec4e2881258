"""The checks of edit sets: the shipped ones pass, every planted fault is found, and the measures are what they say."""

import itertools
import math
import os.path
import re
import shutil
from collections import Counter
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from riebench.core.errors import UserError
from riebench.core.files import data_folder
from riebench.edits.checks import check_edits, validate_edits
from riebench.edits.datasheet import format_datasheet
from riebench.edits.edit import CATEGORY_NAMES, Edit, load_edits, read_edits, write_edits
from riebench.edits.rules import content_words, jaccard, ngram_cosine, words_of

SHIPPED = data_folder() / "edits"
BOAT = Edit("boat", "change_colour", "a red boat", "a blue boat", "boat", "boat")


@pytest.fixture(scope="module")
def edits():
    return load_edits("riebench")


def changed(edits, which, /, **values):
    """The edits, one of them changed; `tags` are added to its own."""
    return [
        replace(edit, **(values | {"tags": edit.tags | values.get("tags", {})})) if edit.id == which else edit
        for edit in edits
    ]


@pytest.mark.parametrize("name", ["riebench", "tinyworld"])
def test_the_shipped_sets_pass(name):
    assert validate_edits(name) == []


def test_exactly_the_words_of_the_tags_differ(edits):
    """Counted from both ends, which is not how the checker does it."""
    for edit in edits:
        before, after = edit.original_prompt.split(), edit.edited_prompt.split()
        head = len(os.path.commonprefix([before, after]))
        tail = len(os.path.commonprefix([before[head:][::-1], after[head:][::-1]]))
        lengths = len(before) - head - tail, len(after) - head - tail
        assert lengths == (len(edit.tags["from"].split()), len(edit.tags["to"].split())), edit.id
        assert sorted(before) == sorted(
            [*(Counter(after) - Counter(edit.tags["to"].split())).elements(), *edit.tags["from"].split()]
        ), edit.id


def test_balance_and_splits_in_a_cross_table(edits):
    frame = pd.DataFrame([{"category": edit.category, **edit.tags} for edit in edits])
    assert (pd.crosstab(frame.category, frame.split)[["dev", "test"]] == [20, 40]).all().all()
    assert list(pd.crosstab(frame.category, frame.split).index) == sorted(CATEGORY_NAMES)
    assert (pd.crosstab(frame.category, frame.look) == 15).all().all()
    subjects = pd.crosstab(frame.category, frame.subject)
    assert subjects.shape == (9, 8) and subjects.min().min() == 7 and subjects.max().max() == 8
    of_dev = frame[frame.split == "dev"]
    assert (pd.crosstab(of_dev.category, of_dev.look) == 5).all().all()
    assert pd.crosstab(of_dev.category, of_dev.subject).stack().between(2, 3).all()


def test_the_datasheet_says_what_the_files_hold(edits):
    page = (SHIPPED / "README.md").read_text()
    figures = re.search(r"<!-- figures: .* -->\n(.*)\n<!-- end of figures -->", page, re.DOTALL)[1]
    assert figures == format_datasheet(edits)
    frame = pd.DataFrame([{"category": edit.category, **edit.tags} for edit in edits])
    by_hand = frame.groupby("category").agg(lambda values: (values == "animal").sum()).subject
    for category, count in by_hand.items():
        assert f"| {category} | 60 | {count} |" in figures
    assert f"{frame[frame.category == 'change_style'].to.nunique()} target styles" in figures
    lines = (SHIPPED / "riebench" / "words.txt").read_text().splitlines()
    assert lines == sorted(set(lines)) and f"{len(lines)} words" in figures


def test_every_word_is_spelled_as_a_dictionary_spells_it(edits):
    spelling = pytest.importorskip("spellchecker")
    british_or_rare = {
        *("chequered", "colour", "colourful", "harbour", "kerb", "parlour", "recolour", "stylised", "tyres"),
        *("watercolour", "lacemaker", "lakeshore", "macaron", "nouveau", "papercraft", "voxel"),
    }
    assert set(spelling.SpellChecker().unknown(words_of(edits))) == british_or_rare


def slow_cosine(prompts):
    """Character n-gram vectors with log counts and smoothed inverse document frequency, a pair at a time."""
    bags = [
        Counter(
            f" {word} "[i : i + n] for word in content_words(text) for n in (3, 4, 5) for i in range(len(word) + 3 - n)
        )
        for text in prompts
    ]
    weight = {
        gram: math.log((1 + len(bags)) / (1 + sum(gram in bag for bag in bags))) + 1 for gram in set().union(*bags)
    }
    vectors = [{gram: (1 + math.log(count)) * weight[gram] for gram, count in bag.items()} for bag in bags]

    def dot(a, b):
        return sum(value * b.get(gram, 0) for gram, value in a.items())

    return [[dot(a, b) / math.sqrt(dot(a, a) * dot(b, b)) for b in vectors] for a in vectors]


def test_the_two_likenesses_by_a_slow_way(edits):
    prompts = [edit.original_prompt for edit in edits[::20]] + ["a red boat on a lake", "red boats on lakes"]
    sets = [set(content_words(prompt)) for prompt in prompts]
    by_hand = [[len(a & b) / len(a | b) for b in sets] for a in sets]
    np.testing.assert_allclose(jaccard(prompts), by_hand)
    np.testing.assert_allclose(ngram_cosine(prompts), slow_cosine(prompts), atol=1e-12)
    assert jaccard(prompts)[-2, -1] == pytest.approx(1 / 5) and ngram_cosine(prompts)[-2, -1] > 0.5


def test_no_two_edits_are_nearer_than_the_datasheet_says(edits):
    prompts = [text for edit in edits for text in (edit.original_prompt, edit.edited_prompt)]
    own = np.kron(np.eye(len(edits)), np.ones((2, 2)))
    for alike, nearest in ((jaccard, 0.43), (ngram_cosine, 0.67)):
        assert round(float((alike(prompts) * (1 - own)).max()), 2) == nearest


FAULTS = [
    ({"original_prompt": "red jacket"}, "original_prompt", "has 2 words"),
    ({"original_prompt": "A photo of a trombone player."}, "original_prompt", "is not plain lower case"),
    ({"instruction": "red"}, "instruction", "has 1 words"),
    ({"original_region": "hat", "edited_region": "hat"}, "original_region", "does not stand in original_prompt"),
    ({"edited_region": "trombone"}, "original_region", "is not edited_region"),
    ({"tags": {"to": "blue"}}, "edited_prompt", "is not original_prompt with 'blue' for 'green'"),
    ({"tags": {"from": "green jacket", "to": "red jacket"}}, "tags", "share a first or last word"),
    ({"tags": {"subject": "music"}}, "tags.subject", "'music' is none"),
    ({"tags": {"split": "train"}}, "tags.split", "'train' is none"),
    ({"id": "change_colour-16"}, "id", "is not its category and a number"),
]


@pytest.mark.parametrize(("values", "field", "what"), FAULTS)
def test_every_rule_finds_its_fault_in_the_right_edit(edits, values, field, what):
    id = values.get("id", "change_colour-016")
    problems = check_edits(changed(edits, "change_colour-016", **values), strict=True)
    found = [problem for problem in problems if problem.field == field and what in problem.what]
    assert [problem.id for problem in found] in ([id], [id, id]) and all(problem.remedy for problem in found)
    assert not [problem for problem in problems if problem.id not in ("", id)]


@pytest.mark.slow
def test_regions_follow_the_category(edits):
    for id, values, what in (
        ("change_background-000", {"original_region": "llama"}, "is not 'background'"),
        ("change_style-001", {"edited_region": "bridge"}, "is not 'everything'"),
        ("add_object-000", {"edited_region": "water"}, "stands in original_prompt too"),
        ("delete_object-000", {"original_region": "cabin"}, "stands in edited_prompt too"),
        ("change_object-000", {"edited_region": "hedgehog"}, "does not stand in edited_prompt"),
    ):
        problems = check_edits(changed(edits, id, **values), strict=True)
        assert any(what in problem.what and problem.id == id for problem in problems), id


def test_duplicates_are_found_within_and_across_categories(edits):
    scene = "a crayon drawing of cargo tricycles outside bakeries"  # of add_object-027, in other forms of its words
    assert jaccard([scene, "a watercolour of a cargo tricycle outside a bakery"])[0, 1] < 0.4
    near = changed(edits, "change_style-025", original_prompt=scene)
    (problem,) = (p for p in check_edits(near, strict=True) if "nearly" in p.what)
    assert "letters" in problem.what and problem.id == "change_style-025" and "'add_object-027'" in problem.what
    same = changed(edits, "change_style-025", original_prompt="an ink drawing of a goat lying down under an apple tree")
    assert sum("(words: 1.00" in p.what for p in check_edits(same, strict=True)) == 1
    twice = check_edits([BOAT, replace(BOAT, id="again")])
    assert [(p.id, p.field) for p in twice] == [("again", "original_prompt")] and "'boat'" in twice[0].what


def test_a_set_out_of_balance_says_where(edits):
    problems = check_edits(edits[1:], strict=True)
    assert {(p.what, p.remedy) for p in problems} >= {("there are 59 change_object edits", "have 60")}
    tagged = [
        replace(edit, tags=edit.tags | {"look": "photo"}) if edit.category == "change_pose" else edit for edit in edits
    ]
    problems = check_edits(tagged, strict=True)
    assert "tags.look 'photo' stands 60 times in change_pose" in {p.what for p in problems}
    assert {p.remedy for p in problems if "in change_pose" in p.what} == {
        "have 12 to 18",
        "have 4 to 6",
        "have 8 to 12",
    }


@pytest.mark.slow
def test_a_word_that_nobody_reviewed_and_one_that_nobody_uses(tmp_path, edits):
    shutil.copytree(SHIPPED / "riebench", tmp_path / "set")
    file = tmp_path / "set" / "change_pose.jsonl"
    file.write_text(file.read_text().replace("rehearsal", "reahearsal"))
    problems = validate_edits(tmp_path / "set")
    assert [(p.field, p.value, p.line) for p in problems if p.id] == [("original_prompt", "reahearsal", 43)]
    assert [p.value for p in problems if not p.id] == ["rehearsal"]
    with open(tmp_path / "set" / "words.txt", "a") as words:
        words.write("reahearsal\n")
    file.write_text(file.read_text().replace("an ink drawing of a grand piano", "an ink drawing of one grand piano"))
    problems = validate_edits(tmp_path / "set")
    assert [p.value for p in problems if p.id == ""] == ["rehearsal"]
    (tmp_path / "set" / "words.txt").write_text("\n".join(words_of(read_edits(tmp_path / "set"))))
    (problem,) = validate_edits(tmp_path / "set")  # well-formed, but not what set.json vouches for
    assert problem.field == "sha256" and "another version" in problem.remedy


@pytest.mark.parametrize(
    ("values", "field", "what"),
    [
        ({"edited_prompt": "a [red] boat"}, "edited_prompt", "are both 'a [red] boat'"),
        ({"original_region": "~ ,"}, "original_region", "names nothing"),
        ({"original_region": "not everything"}, "original_region", "is nowhere"),
        ({"edited_region": "mask:absent.png"}, "edited_region", "cannot be read: No such file"),
        ({"tags": {"split": "train"}}, "tags.split", "'train' is none"),
    ],
)
def test_what_any_set_has_to_fulfil(values, field, what):
    assert check_edits([BOAT]) == []
    (problem,) = check_edits([replace(BOAT, **values)])
    assert problem.field == field and what in problem.what and problem.remedy
    assert str(problem) == f"edit 'boat': {problem.what} -> {problem.remedy}"


def test_masks_are_looked_at(tmp_path):
    for name, value in (("full", 255), ("empty", 100)):
        Image.fromarray(np.full((8, 8), value, dtype=np.uint8)).save(tmp_path / f"{name}.png")
    (tmp_path / "text.png").write_text("no picture")
    regions = [f"mask:{tmp_path / name}.png" for name in ("full", "empty", "text")]
    problems = check_edits([replace(BOAT, original_region=regions[0], edited_region=region) for region in regions[:1]])
    assert problems == []
    for region, what in zip(regions[1:], ("the mask is empty", "cannot be read"), strict=True):
        (problem,) = check_edits([replace(BOAT, edited_region=region)])
        assert what in problem.what and problem.value == region


def test_validation_names_all_places_of_a_folder(tmp_path):
    write_edits([BOAT, replace(BOAT, id="same", edited_prompt="a red boat")], tmp_path / "a.jsonl")
    (tmp_path / "b.csv").write_text(
        "id,category,original_prompt,edited_prompt,original_region,edited_region\n"
        "boat,change_pose,a sitting cat,a running cat,cat,cat\n"
        "x,change_pose,a sitting cat,,cat,cat\n"
    )
    problems = validate_edits(tmp_path)
    places = [(os.path.basename(p.file), p.line, p.id, p.field) for p in problems]
    assert places == [
        ("b.csv", 3, "x", "edited_prompt"),
        ("a.jsonl", 2, "same", "edited_prompt"),
        ("b.csv", 2, "boat", "id"),
    ]
    (tmp_path / "only").mkdir()
    (tmp_path / "only" / "e.yaml").write_text("edits: []")
    with pytest.raises(UserError, match="holds no edits.*new-edits"):
        validate_edits(tmp_path / "only")
    with pytest.raises(UserError, match="did you mean 'riebench'"):
        validate_edits("riebnch")


def test_pairs_of_categories_do_not_mirror_each_other(edits):
    """Adding and deleting are not the same items read backwards."""
    added = {(edit.original_prompt, edit.edited_prompt) for edit in edits if edit.category == "add_object"}
    deleted = {(edit.edited_prompt, edit.original_prompt) for edit in edits if edit.category == "delete_object"}
    assert len(added) == len(deleted) == 60 and not added & deleted
    prompts = list(itertools.chain.from_iterable((edit.original_prompt, edit.edited_prompt) for edit in edits))
    assert len(set(prompts)) == 1080
