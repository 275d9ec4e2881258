"""`riebench run` and `riebench validate` find the same in an edit file, before anything is generated."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from PIL import Image

import riebench
from riebench.backbones.sdxl import encode
from riebench.backbones.table import BACKBONES
from riebench.cli import main
from riebench.core.errors import UserError
from riebench.edits.checks import check_edits, checked_edits, validate_edits
from riebench.edits.edit import Edit, load_edits, write_edits
from riebench.edits.phrases import published_phrase
from riebench.runs.config import build_config
from riebench.runs.edits import TOKENS, choose_edits, describe_choice, suits, usual_suits
from riebench.runs.parts import parts_of

HEAD = "id,category,original_prompt,edited_prompt,original_region,edited_region"
RED = "flat poster of a standing red plain circle on a meadow"
BLUE = RED.replace("red", "blue")
LONG = (
    "an extremely detailed award winning photograph taken on a foggy autumn morning near the old harbour with fishing"
    " boats, ropes, nets, crates, gulls, lanterns, wet cobblestones, drifting smoke, soft light, muted colours, shallow"
    " depth of field, fine film grain, natural shadows, crisp textures, calm water, distant hills, wooden piers, rusty"
    " anchors, weathered planks, painted signs, and in front of it all a red bicycle"
)
GOOD = Edit("good", "change_colour", RED, BLUE, "circle", "circle")
WORLD = BACKBONES.get("tinyworld-turbo@1")


def row(id, original=RED, edited=BLUE, region="circle", more=""):
    return f"{id},change_colour,{original},{edited},{region},{region}{more}"


def table(*rows, head=HEAD):
    return "\r\n".join([head, *rows]) + "\r\n"


STAR = RED.replace("circle", "star")
DOUBTFUL = table(
    row("real"), row("same", edited=RED), row("case-only", STAR, STAR.replace("red", "Red"), "star"), row("again")
)
SPLITS = table(
    row("e0", more=",train"),
    row("e1", RED.replace("circle", "star"), BLUE.replace("circle", "star"), more=",train"),
    row("e2", RED.replace("circle", "heart"), BLUE.replace("circle", "heart"), more=",val"),
    row("e3", RED.replace("circle", "square"), BLUE.replace("circle", "square"), more=",test"),
    head=f"{HEAD},tags.split",
)
CUT = json.dumps(
    {
        "id": "long",
        "category": "change_colour",
        "original_prompt": LONG,
        "edited_prompt": LONG.replace("a red", "a blue"),
    }
    | {"original_region": "bicycle", "edited_region": "bicycle"}
)
#: Name of a file -> its content, and (edit's id, what is said of it) of each problem on tinyworld.
FILES = {
    "doubtful.csv": (
        DOUBTFUL,
        [("same", "are both"), ("case-only", "differ in capitals alone"), ("again", "the same edit as 'real'")],
    ),
    "foreign-splits.csv": (
        SPLITS,
        [("e0", "split 'train' is none, and runs of dev or of test leave this edit out")]
        + [("e1", "'train' is none"), ("e2", "'val' is none")],
    ),
    "cut-at-77.jsonl": (
        CUT,
        [("long", "the word 'an' is not in tinyworld's vocabulary")] * 2
        + [("long", "knows no noun of the phrase 'bicycle'")] * 2
        + [("long", "to the text encoders of tinyworld-turbo@1 both are the same")],
    ),
    "words.csv": (
        table(row("a"), row("zebra", edited=BLUE.replace("circle", "zebra")), row("order", edited="on a meadow of a")),
        [("zebra", "edited_prompt: the word 'zebra' is not"), ("order", "edited_prompt: in 'on a meadow of a' 'on'")],
    ),
    "nouns.csv": (table(row("a", region="not the wheel")), [("a", "no noun of the phrase 'the wheel'")] * 2),
    "capitals.csv": (
        table(row("a"), row("b", RED.upper(), BLUE.upper())),
        [("b", "the same edit as 'a'")],
    ),
    "marks.csv": (
        table(row("a", edited=RED.replace("red", "[RED]"))),
        [("a", "differ in capitals alone")],
    ),
    "mask.csv": (
        table(
            row("a", region="mask:small.png"), row("b", edited=BLUE.replace("blue", "green"), region="mask:whole.png")
        ),
        [("a", "small.png has 32 x 64 px, pictures of tinyworld-turbo@1 64 x 64 px")] * 2,
    ),
    "unreadable.csv": (
        table(row("a", edited=""), row("b"), row("b", edited=RED)),
        [("a", "edited_prompt is"), ("b", "are both"), ("b", "stands twice")],
    ),
}


@pytest.fixture(params=FILES)
def case(request, tmp_path):
    content, expected = FILES[request.param]
    (tmp_path / request.param).write_text(content)
    for name, shape in (("small", (64, 32)), ("whole", (64, 64))):
        Image.fromarray(np.full(shape, 255, dtype=np.uint8)).save(tmp_path / f"{name}.png")
    return tmp_path / request.param, expected


def test_run_refuses_all_that_validate_finds_at_once_with_the_edits_ids(case, tmp_path, capsys):
    path, expected = case
    with pytest.raises(UserError) as caught:
        run(path, tmp_path / "run")
    refusal = str(caught.value)
    assert main(["validate", str(path), "--backbone", "tinyworld-turbo@1"]) == 2
    _, *lines, last = capsys.readouterr().err.splitlines()
    assert last.startswith("riebench: 1 of 1 are not in order")
    assert len(lines) == len(expected) and all(line in refusal for line in lines)
    for id, said in expected:
        assert any(line.startswith(f"edit {id!r}, {path}, line ") and said in line for line in lines), (id, said)
    assert not (tmp_path / "run").exists() and "\n" not in refusal


def run(path, out):
    from riebench.runs.run import run

    config = build_config({"edits": str(path), "methods": ["noop", "sae"], "resamples": 10}, "here")
    return run(config, out, device="cpu")


def test_edits_of_python_and_the_doctor_are_held_against_the_same(tmp_path):
    bad = [GOOD, dataclasses.replace(GOOD, id="zebra", edited_prompt="a zebra"), dataclasses.replace(GOOD, id="again")]
    with pytest.raises(UserError, match="has 2 problems: .*edit 'zebra': .*'zebra' is not in.*edit 'again': the same"):
        riebench.run("quickstart", tmp_path / "run", device="cpu", edits=bad)
    write_edits(bad, tmp_path / "bad.jsonl")
    parts = parts_of(build_config({"edits": str(tmp_path / "bad.jsonl")}, "here"))
    (part,) = [one for one in parts if one.kind == "edits"]
    assert "'zebra' is not in" in part.missing


def test_another_grounder_may_know_other_nouns_and_reference_mode_reads_them_otherwise():
    edit = dataclasses.replace(GOOD, original_region="the background", edited_region="the background")
    found = check_edits([edit], suits=suits(WORLD))
    assert [problem.field for problem in found] == ["original_region", "edited_region"]
    assert check_edits([edit], suits=suits(WORLD, read_phrase=published_phrase)) == []
    assert check_edits([edit], suits=suits(dataclasses.replace(WORLD, grounder="clipseg"))) == []


@pytest.mark.parametrize("name", ["tinyworld", "riebench"])
def test_the_shipped_sets_suit_their_backbones(name):
    edits = load_edits(name)
    backbone, fits = usual_suits(edits)
    assert backbone.name == {"tinyworld": "tinyworld-turbo@1", "riebench": "sdxl-turbo@1"}[name]
    assert check_edits(edits, suits=fits) == []


def with_encoders_that_tell_every_token_apart(pipeline) -> StableDiffusionXLPipeline:
    """The pipeline with random text encoders of the same sizes: to tinyworld's own, words like "of" say nothing."""
    torch.manual_seed(0)
    names = ("text_encoder", "text_encoder_2")
    parts = {name: type(pipeline.components[name])(pipeline.components[name].config).eval() for name in names}
    return StableDiffusionXLPipeline(**pipeline.components | parts)


def test_what_is_said_to_be_the_same_is_the_same_to_the_text_encoders(sampler):
    """The states that a pipeline's encoders give, for prompts that are drawn as the tokenizers see them."""
    telling = with_encoders_that_tell_every_token_apart(sampler.pipeline)
    backbone = dataclasses.replace(WORLD, judges="sdxl", grounder="everything")
    head = "flat poster of a standing red plain circle on a meadow "
    pairs = [
        (head + "a", head + "of"),
        (head * 3 + "a", head * 3 + "of"),
        (head, head.upper()),
        (head, head.replace("red", "read")),
        ("a  red   star", "a red star"),
        ("a red star,", "a red star"),
        (head * 2 + "red", head * 2 + "blue"),
        *((" ".join(["red"] * i), " ".join(["red"] * (i + 1))) for i in (20, 21, 22, 23, 24)),
    ]
    fits, seen = suits(backbone), set()
    for original, edited in pairs:
        same, shipped = (
            all(bool((value[0] == value[1]).all()) for value in encode(pipeline, [original, edited]).values())
            for pipeline in (telling, sampler.pipeline)
        )
        found = check_edits([Edit("e", "change_colour", original, edited, "x", "y")], suits=fits)
        assert bool(found) == same and shipped >= same, (original, edited)
        seen.add(same)
    assert seen == {True, False}


def test_without_tokenizers_only_what_any_of_clip_would_find_the_same_is_refused(tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    fits = suits(BACKBONES.get("sdxl-turbo@4"))

    def found(original, edited):
        pair = dataclasses.replace(GOOD, original_prompt=original, edited_prompt=edited)
        return [problem.what for problem in check_edits([pair], suits=fits)]

    assert found(LONG, LONG.replace("a red", "a blue")) == [
        "original_prompt and edited_prompt differ only where they are cut off: to the text encoders of sdxl-turbo@4"
        " both are the same"
    ]
    full = "word " * (TOKENS - 2)
    assert found(f"{full} a", f"{full} b") and not found(f"{full[5:]} a", f"{full[5:]} b")
    assert found("a red star", "a RED star") and not found("a red star", "a red stars")


def test_a_set_that_claims_the_strict_rules_is_held_to_them_by_both(tmp_path):
    write_edits([GOOD], tmp_path / "set" / "a.jsonl")
    (tmp_path / "set" / "words.txt").write_text("circle\n")
    words = {"name": "m", "version": "1", "licence": "x", "source": "y", "checked": "riebench", "sha256": "0" * 64}
    (tmp_path / "set" / "set.json").write_text(json.dumps(words))
    problems = validate_edits(tmp_path / "set", suits(WORLD))
    assert len(problems) > 8
    with pytest.raises(UserError, match=f"has {len(problems)} problems .edits 'good'.*and {len(problems) - 8} more"):
        checked_edits(tmp_path / "set", suits(WORLD))


def test_what_a_split_a_category_or_a_number_leaves_out_is_counted():
    tags = [*["dev"] * 2, *["test"] * 3, ""]
    edits = [
        dataclasses.replace(GOOD, id=f"{category}-{i}", category=category, tags={"split": tag} if tag else {})
        for category in ("change_colour", "change_pose")
        for i, tag in enumerate(tags)
    ]

    def said(**words):
        config = build_config(words, "here")
        return describe_choice(edits, choose_edits(edits, config), config)

    of_split = "6 that are not of the split test (dev 4, without a split 2; --split all runs them)"
    assert said() == f"6 of 12 edits are run; left out: {of_split}"
    assert said(split="all") == ""
    assert said(categories=["change_pose"], edits_per_category=1) == (
        f"1 of 12 edits are run; left out: {of_split}, 3 of categories that were not asked for, 2 beyond 1 a category"
        " (--edits-per-category 0 runs all)"
    )
    config = build_config({"edits_per_category": 1}, "here")
    assert describe_choice(edits, choose_edits(edits, config), config, own=False).startswith("2 of 12 edits are run")
    config = build_config({"edits_per_category": 1, "split": "all"}, "here")
    assert describe_choice(edits, choose_edits(edits, config), config, own=False) == ""
    untagged = [dataclasses.replace(edit, tags={}) for edit in edits]
    config = build_config({}, "here")
    assert describe_choice(untagged, choose_edits(untagged, config), config) == ""


def test_the_run_says_it_before_it_begins(tmp_path, monkeypatch, capsys):
    from riebench.runs import run as runs

    class Enough(Exception):
        pass

    def leave_out(*_words):
        raise Enough

    monkeypatch.setattr(runs, "leave_out", leave_out)
    rows = [row("a", more=",dev"), row("b", edited=RED.replace("red", "green"), more=",test")]
    (tmp_path / "mine.csv").write_text(table(*rows, head=f"{HEAD},tags.split"))
    with pytest.raises(Enough):
        run(tmp_path / "mine.csv", tmp_path / "run")
    said = "riebench: 1 of 2 edits are run; left out: 1 that are not of the split test (dev 1; --split all runs them)\n"
    assert capsys.readouterr().err == said
    assert main(["validate", str(tmp_path / "mine.csv")]) == 0
    found = capsys.readouterr()
    assert found.err == f"{tmp_path}/mine.csv: 2 edits (dev 1, test 1), for tinyworld-turbo@1\n"
    assert "1 in order" in found.out


def test_a_file_without_edits_is_told_by_both(tmp_path):
    (tmp_path / "empty.yaml").write_text("edits: []\n")
    for look in (validate_edits, checked_edits):
        with pytest.raises(UserError, match="holds no edits"):
            look(tmp_path / "empty.yaml")
