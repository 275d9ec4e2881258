"""Entries of the leaderboard and their ranks, against pandas, loops, scipy and simulation; entries that are wrong."""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import math
import pickle
import re
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from PIL import Image

from riebench.analysis.frames import write_scores
from riebench.analysis.ranks import rank_entries, rank_intervals, ranks_of
from riebench.analysis.statistics import bootstrap_weights
from riebench.core import files
from riebench.core.errors import UserError
from riebench.core.files import MARKER
from riebench.core.scores import COLUMNS, Score, describe_scores, scores_of
from riebench.edits.edit import CATEGORY_NAMES, Edit, set_sha256, write_edits
from riebench.leaderboard import entry_folders, read_entries, read_entry, render_site, submit, validate
from riebench.leaderboard.packing import picture_problems

BLOCKS = ("down.2.1", "up.0.1")
EVERY = "+".join(BLOCKS)
SEEDS = (42, 43, 44)
SCORED = (
    Score("clip_text_edited", "CLIP, edited prompt", "higher", "cosine", bounds=(-1, 1), network="ViT-L-14 openai"),
    Score("lpips_original", "LPIPS to original", "lower", "distance", bounds=(0, None), network="AlexNet"),
    Score("clip_directional", "Directional CLIP", "higher", "cosine", always=False, bounds=(-1, 1)),
)
#: Method -> (strength, blocks, gain in CLIP, LPIPS).
RUN = (
    ("noop", 0.0, "", 0.0, 0.0),
    ("oracle-prompt", 1.0, "", 0.4, 0.6),
    ("sae", 1.0, "down.2.1", 0.05, 0.1),
    ("sae", 1.0, "up.0.1", 0.15, 0.2),
    ("sae", 1.0, EVERY, 0.2, 0.3),
    ("sae", 2.0, EVERY, 0.25, 0.5),
    ("random", 1.0, EVERY, 0.0, 0.2),
    ("random", 2.0, EVERY, 0.0, 0.4),
    ("text-selected", 2.0, EVERY, 0.1, 0.25),
)
EDITS = [
    Edit(f"{category}-{i}", category, f"a [cat] {i}", f"a [dog] {i}", "cat", "dog")
    for category in CATEGORY_NAMES
    for i in range(2)
]


@pytest.fixture(autouse=True, scope="module")
def small_set(tmp_path_factory):
    """Data in which the shipped edit set "small" has two edits of each category."""
    data = tmp_path_factory.mktemp("data")
    write_edits(EDITS, data / "edits" / "small" / "all.jsonl")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "data_folder", lambda: data)
        yield


def make_frame(edits=EDITS, seeds=SEEDS, settings=RUN, failed=()):
    rng = np.random.default_rng(0)
    rows = []
    for edit, seed in itertools.product(edits, seeds):
        level = rng.normal(0.2, 0.05)
        for method, strength, blocks, gain, cost in settings:
            row = {name: "" if dtype is str else dtype(0) for name, dtype in COLUMNS.items()}
            row |= {"edit": edit.id, "category": edit.category, "seed": seed, "method": method, "strength": strength}
            row |= {"blocks": blocks, "backbone": "tinyworld-turbo@1", "steps": 1, "mode": "strict", "status": "ok"}
            row |= {"dtype": "float32", "code": "c0de", "injected_norm": 10 * cost, "num_features": 32 if cost else 0}
            row |= {name: f"images/{name}.png" for name in ("original", "edited", "regions")}
            row |= {"image": f"images/{method}.png", "clip_text_edited": level, "lpips_original": cost}
            row["clip_directional"] = math.nan
            if cost:
                row["clip_text_edited"] += gain + rng.normal(0, 0.02)
                row["lpips_original"] += rng.uniform(0, 0.05)
                row["clip_directional"] = gain
            if (edit.id, seed, method) in failed:
                row |= {"status": "failed", "reason": "empty mask"} | {score.name: math.nan for score in SCORED}
            rows.append(row)
    return describe_scores(pd.DataFrame(rows), SCORED)


def write_run(folder, frame=None, *, side=8, **manifest):
    frame = make_frame() if frame is None else frame
    (folder / "images").mkdir(parents=True)
    for i, name in enumerate(sorted({*frame["image"], *frame["original"], *frame["edited"], *frame["regions"]} - {""})):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((side, side, 3), 20 * i, dtype=np.uint8)).save(folder / name)
    methods = [{"name": name, "strength": s, "class": "baselines.X"} for name, s in {row[:2]: 0 for row in RUN}]
    methods[-1] |= {"sees_edited_image": False, "k": 16}
    methods[0] |= {"sees_edited_image": False}
    words = {"status": "finished", "mode": "strict", "blocks": list(BLOCKS), "config": {"edits": "small"}}
    words |= {
        "methods": methods,
        "device": "cpu",
        "machine": "x86_64, 2 threads",
        "python": "3.11.7",
        "scoring": "1ed9e",
    }
    words |= {"edits": {"sha256": set_sha256(EDITS)}}
    words |= {"made": 500, "forwards": 400.0, "seconds": 50.0, "versions": {"riebench": "0.1.0"}} | manifest
    (folder / MARKER).touch()
    (folder / "manifest.json").write_text(json.dumps(words))
    write_scores(frame, folder / "scores.parquet")
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("runs") / "run")


@pytest.fixture(scope="module")
def board(tmp_path_factory, run):
    """The entries of sae at both strengths, of text-selected, and of the controls."""
    root = tmp_path_factory.mktemp("board")
    submit(run, root, authors="A. Author", code="https://example.org/code")
    return root


@pytest.fixture(scope="module")
def entry(board):
    return board / "tinyworld-turbo@1" / "sae@1"


def copy(entry, tmp_path, change=None, rows=None):
    """A copy of an entry in which the content, or the rows of the scores with their hash, are changed."""
    folder = tmp_path / entry.parent.name / entry.name
    shutil.copytree(entry, folder)
    content = json.loads((folder / "entry.json").read_text())
    if rows is not None:
        frame = pd.read_parquet(folder / "scores.parquet")
        rows(frame).to_parquet(folder / "scores.parquet", index=False)
        content["hashes"]["scores"] = hashlib.sha256((folder / "scores.parquet").read_bytes()).hexdigest()
    if change is not None:
        change(content)
    (folder / "entry.json").write_text(json.dumps(content))
    return folder


# ---- submit


@pytest.mark.slow
def test_every_method_and_strength_becomes_an_entry_that_is_valid(board):
    names = ["noop", "oracle-prompt", "random@1", "random@2", "sae@1", "sae@2", "text-selected"]
    assert [entry.name for entry in read_entries(board)] == names
    for name in ("noop", "sae@1", "random@2"):
        assert validate(board / "tinyworld-turbo@1" / name) == []


def test_the_aggregates_are_means_over_edits_of_the_runs_scores(run, entry):
    frame = pd.read_parquet(run / "scores.parquet")
    content = json.loads((entry / "entry.json").read_text())
    whole = frame[frame.blocks.isin(["", EVERY]) & frame.strength.isin([0, 1])]
    rows = {"overall": whole} | {category: whole[whole.category == category] for category in CATEGORY_NAMES}
    for name, of_group in rows.items():
        row = content["aggregates"]["overall"] if name == "overall" else content["aggregates"]["categories"][name]
        means = of_group.groupby(["method", "edit"]).clip_text_edited.mean().groupby("method").mean()
        assert row["scores"]["clip_text_edited"]["mean"] == pytest.approx(means["sae"], abs=1e-6)
        assert row["gains"]["clip_text_edited"]["mean"] == pytest.approx(means["sae"] - means["noop"], abs=1e-6)
        assert (row["edits"], row["cases"]) == (of_group.edit.nunique(), of_group.edit.nunique() * 3)
        assert row["gains"]["clip_directional"] is None
    assert content["cost"]["num_features"] == 32 and content["cost"]["injected_norm"] == pytest.approx(3.0)
    assert (content["cost"]["forwards_per_image"], content["cost"]["seconds_per_image"]) == (0.8, 0.1)


def test_block_effects_are_there_where_the_subsets_were_run_and_sum_to_the_whole(run, board, entry):
    assert read_entry(board / "tinyworld-turbo@1" / "sae@2").content["dominance"] is None
    content = read_entry(entry).content
    effects = content["dominance"]["overall"]["effects"]["clip_text_edited"]
    gain = content["aggregates"]["overall"]["gains"]["clip_text_edited"]["mean"]
    assert sum(effects[block]["shapley"]["mean"] for block in BLOCKS) == pytest.approx(gain)
    assert content["dominance"]["overall"]["dominant"]["clip_text_edited"] == "up.0.1"


def test_an_entry_says_what_its_method_sees_and_how_it_was_made(board):
    sees = {entry.name: entry.content["sees_edited_image"] for entry in read_entries(board)}
    assert [name for name, seen in sees.items() if not seen] == ["noop", "text-selected"]
    entry = read_entry(board / "tinyworld-turbo@1" / "text-selected" / "entry.json")
    assert entry.content["method"] == {
        "name": "text-selected",
        "strength": 2.0,
        "class": "baselines.X",
        "sees_edited_image": False,
        "k": 16,
    }
    assert entry.content["authors"] == "A. Author" and not entry.is_control
    assert entry.content["description"] == "SAE features chosen from the two prompts alone"
    assert entry.content["hashes"]["scoring"] == "1ed9e" and entry.content["hashes"]["code"] == ["c0de"]


def test_an_entry_keeps_its_method_no_intervention_and_the_controls_near_its_strength(board):
    for name, kept in (("sae@1", {("sae", 1), ("random", 1)}), ("sae@2", {("sae", 2), ("random", 2)})):
        rows = read_entry(board / "tinyworld-turbo@1" / name).scores
        settings = set(rows[["method", "strength"]].itertuples(index=False, name=None))
        assert settings == kept | {("noop", 0), ("oracle-prompt", 1)}
        assert {"code", "recipe"}.isdisjoint(rows) and set(rows["image"]) == set(rows["original"]) == {""}


@pytest.mark.slow
def test_examples_do_not_depend_on_scores(run, board, entry, tmp_path):
    shown = [(case["category"], case["edit"], case["seed"]) for case in read_entry(entry).content["images"]]
    assert [category for category, *_ in shown] == list(CATEGORY_NAMES)
    for category, edit, seed in shown:
        ids = [one.id for one in EDITS if one.category == category]
        assert edit == min(ids, key=lambda one: hashlib.sha256(one.encode()).hexdigest()) and seed == 42
    frame = make_frame()
    frame["clip_text_edited"] = -frame["clip_text_edited"]
    (other,) = submit(write_run(tmp_path / "run", frame), tmp_path / "board", methods=["sae@1"])
    assert [(case["category"], case["edit"], case["seed"]) for case in read_entry(other).content["images"]] == shown
    case = read_entry(entry).content["images"][0]
    assert case["prompt_edited"] == f"a dog {case['edit'][-1]}"
    for kind, source in (("original", "original"), ("regions", "regions"), ("intervened", "sae")):
        assert (entry / "images" / case[kind]).read_bytes() == (run / "images" / f"{source}.png").read_bytes()


@pytest.mark.slow
def test_large_pictures_are_made_small(tmp_path):
    (folder,) = submit(write_run(tmp_path / "run", side=512), tmp_path / "board", methods=["sae@2"])
    assert validate(folder) == []
    with Image.open(folder / "images" / read_entry(folder).content["images"][0]["intervened"]) as image:
        assert max(image.size) == 256


@pytest.mark.slow
def test_failed_cases_are_counted_and_are_no_gap(tmp_path):
    failed = [("add_object-0", 42, "sae"), ("add_object-0", 43, "sae"), ("change_pose-1", 44, "noop")]
    (folder,) = submit(write_run(tmp_path / "run", make_frame(failed=failed)), tmp_path / "board", methods=["sae@1"])
    assert validate(folder) == []
    content = read_entry(folder).content
    assert content["failures"] == {"add_object": {"empty mask": 2}, "change_pose": {"empty mask": 1}}
    assert content["aggregates"]["overall"]["cases"] == len(EDITS) * 3 - 3
    assert all((case["edit"], case["seed"], "sae") not in failed for case in content["images"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("frame", "manifest", "said"),
    [
        (
            lambda: make_frame(edits=EDITS[:-1]),
            {},
            "lacks 3 of the 54 cases: change_style-1 (change_style) with seed 42",
        ),
        (lambda: make_frame(seeds=(42, 43)), {}, "2 seeds, where strict mode asks for at least 3"),
        (lambda: make_frame(settings=[row for row in RUN if row[0] in ("noop", "sae")]), {}, "oracle-prompt, random"),
        (
            lambda: make_frame([*EDITS, Edit("own", "add_object", "a", "b", "x", "y")]),
            {},
            "has 3 beside the 54 cases: own",
        ),
        (make_frame, {"status": "interrupted"}, "is not finished"),
        (make_frame, {"config": {"edits": "smal"}}, "did you mean 'small'"),
        (make_frame, {"edits": {"sha256": "0" * 64}}, "the edit set 'small' has changed since"),
        (make_frame, {"methods": []}, "the manifest has no method 'sae' at strength 1"),
        (
            lambda: make_frame().assign(regions=""),
            {},
            "does not name the regions picture of change_object-1 with seed 42",
        ),
    ],
)
def test_what_cannot_be_an_entry_is_refused_and_leaves_nothing(tmp_path, frame, manifest, said):
    run = write_run(tmp_path / "run", frame(), **manifest)
    with pytest.raises(UserError) as error:
        submit(run, tmp_path / "board", methods=["sae@1"])
    assert said in str(error.value) and "\n" not in str(error.value)
    assert not list((tmp_path / "board").rglob("*.*"))


def test_edits_or_a_backbone_of_ones_own_make_no_entry_as_validate_has_it(tmp_path, entry):
    write_edits(EDITS, tmp_path / "mine.jsonl")
    for words, frame in (
        ({"config": {"edits": str(tmp_path / "mine.jsonl")}}, make_frame()),
        ({}, make_frame().assign(backbone="mine@1")),
    ):
        run = write_run(tmp_path / frame["backbone"][0], frame, **words)
        with pytest.raises(UserError, match=r"no shipped edit set|there is no 'mine@1'") as refused:
            submit(run, tmp_path / "board", methods=["sae@1"])
        said = str(refused.value).partition("cannot be an entry: ")[2].partition(" -> ")[0]

        def change(content, words=words, frame=frame):
            content["edits"]["name"] = words.get("config", {}).get("edits", "small")
            content["backbone"] = frame["backbone"][0]

        assert said in validate(copy(entry, tmp_path / f"of-{frame['backbone'][0]}", change))
    assert not (tmp_path / "board").exists()


@pytest.mark.slow
def test_a_method_or_control_without_a_valid_case_is_no_entry_and_no_other_is_written(tmp_path):
    cases = [(edit.id, seed) for edit in EDITS for seed in (42, 43, 44)]
    run = write_run(tmp_path / "run", make_frame(failed=[(*case, "text-selected") for case in cases]))
    with pytest.raises(UserError, match="text-selected failed in 54 of 54 cases: empty mask -> .*--methods"):
        submit(run, tmp_path / "board")
    assert not (tmp_path / "board").exists()
    (folder,) = submit(run, tmp_path / "board", methods=["sae@1"])
    assert validate(folder) == []
    run = write_run(tmp_path / "control", make_frame(failed=[(*case, "random") for case in cases]))
    with pytest.raises(UserError, match="controls without a valid case: random"):
        submit(run, tmp_path / "other", methods=["sae@1"])


@pytest.mark.slow
def test_asking_for_what_is_not_there_or_is_there_already(tmp_path, run, board):
    with pytest.raises(UserError, match="no method 'sea'.*did you mean 'sae@"):
        submit(run, tmp_path, methods=["sea"])
    with pytest.raises(UserError, match="one name for 2 entries"):
        submit(run, tmp_path, methods=["sae"], name="mine")
    with pytest.raises(UserError, match="cannot be the name of a folder"):
        submit(run, tmp_path, methods=["sae@1"], name="../mine")
    with pytest.raises(UserError, match="already"):
        submit(run, board, methods=["sae@1"])
    with pytest.raises(UserError, match="code: 'ftp://x' does not match"):
        submit(run, tmp_path, methods=["sae@2"], name="mine", code="ftp://x")
    missing = shutil.copytree(run, tmp_path / "run")
    (missing / "images" / "sae.png").unlink()
    with pytest.raises(UserError, match="sae.png cannot be read"):
        submit(missing, tmp_path, methods=["sae@2"])


# ---- validate


@pytest.mark.slow
def test_every_figure_edited_by_hand_is_named_with_what_the_scores_say(entry, tmp_path):
    true = json.loads((entry / "entry.json").read_text())

    def change(content):
        content["aggregates"]["overall"]["gains"]["clip_text_edited"]["mean"] = 0.9
        content["aggregates"]["categories"]["change_pose"]["scores"]["lpips_original"]["low"] = 0.001
        content["dominance"]["categories"]["add_object"]["dominant"]["clip_text_edited"] = "mid.0"
        content["cost"]["num_features"] = 8
        content["failures"] = {"add_object": {"empty mask": 2}}
        content["images"][3]["scores"]["clip_text_edited"] = 0.99
        content["images"][0]["prompt_edited"] = "a bird"

    problems = validate(copy(entry, tmp_path, change))
    gain = true["aggregates"]["overall"]["gains"]["clip_text_edited"]["mean"]
    assert f"aggregates.overall.gains.clip_text_edited.mean is 0.9, the scores say {gain:.7g}" in problems
    starts = (
        "aggregates.overall.gains",
        "aggregates.categories.change_pose.scores.lpips_original.low is 0.001",
        "dominance.categories.add_object.dominant.clip_text_edited is 'mid.0'",
        "cost.num_features is 8, the scores say 32",
        "failures.add_object is {'empty mask': 2}, the scores say nothing of it",
        "images.3.scores.clip_text_edited is 0.99",
        "images.0.prompt_edited is 'a bird'",
    )
    assert len(problems) == len(starts)
    assert all(any(problem.startswith(start) for problem in problems) for start in starts)


def test_all_breaches_of_the_schema_are_named_at_once(entry, tmp_path):
    def change(content):
        del content["authors"]
        content["rank"] = 1
        content["steps"] = "one"
        content["code"] = "javascript:alert(1)"
        content["aggregates"]["overall"]["cases"] = -1
        content["images"][0]["original"] = "../../secret.png"

    folder = copy(entry, tmp_path, change)
    problems = validate(folder)
    starts = (
        "the entry: 'authors' is a req",
        "the entry: Additional",
        "steps: 'one'",
        "code: ",
        "aggregates.overall.cases",
    )
    assert len(problems) == 6
    assert all(any(problem.startswith(start) for problem in problems) for start in (*starts, "images.0.original"))
    with pytest.raises(UserError, match="'authors' is a required property.*steps: 'one'"):
        read_entry(folder)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: c.update(schema=0), "is of schema 0, this version of riebench reads 1"),
        (lambda c: c["cost"].update(num_features=math.nan), "NaN is no finite number"),
        (lambda c: c.clear(), "is of schema None"),
    ],
)
def test_an_entry_that_cannot_be_read_is_one_line(entry, tmp_path, change, said):
    (problem,) = validate(copy(entry, tmp_path, change))
    assert said in problem and "\n" not in problem


@pytest.mark.slow
def test_files_must_be_those_that_were_submitted(entry, tmp_path):
    folder = copy(entry, tmp_path)
    images = sorted((folder / "images").iterdir())
    images[0].unlink()
    Image.new("RGB", (8, 8), "red").save(images[1])
    (folder / "notes.txt").write_text("hello")
    frame = pd.read_parquet(folder / "scores.parquet")
    frame["injected_norm"] += 1e-9
    frame.to_parquet(folder / "scores.parquet", index=False)
    problems = validate(folder)
    assert len(problems) == 4
    assert f"images/{images[0].name} is missing" in problems and "notes.txt does not belong to the entry" in problems
    for name in ("scores.parquet", f"images/{images[1].name}"):
        assert any(problem.startswith(f"{name} is not the file that was submitted") for problem in problems)


def edited(column, value, where=lambda frame: frame["method"] == "sae"):
    def change(frame):
        at = frame.index[where(frame)][0]
        frame.loc[at, column] = value
        return frame

    return change


def on_all_blocks(frame):
    return (frame["method"] == "sae") & (frame["blocks"] == EVERY)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (lambda f: f[f.edit != "add_object-1"], "sae@1 on up.0.1 lacks 3 of the 54 cases: add_object-1 (add_object)"),
        (lambda f: f[f.method != "random"], "controls missing: random"),
        (lambda f: f[f.seed != 44], "2 seeds, where strict mode asks for at least 3"),
        (edited("category", "change_pose"), "has 1 beside the 54 cases"),
        (edited("method", "mine", lambda f: f.method == "random"), "rows of other methods: mine"),
        (edited("clip_text_edited", 1.5), "is 1.5, outside its bounds -1 to 1"),
        (edited("clip_text_edited", math.nan), "is ok but lacks clip_text_edited"),
        (edited("lpips_original", math.inf), "has lpips_original inf"),
        (edited("clip_text_edited", 0.9, on_all_blocks), "aggregates.overall.scores.clip_text_edited.mean is"),
        (lambda f: f.drop(columns="image"), "columns missing: image"),
        (lambda f: f.assign(mode="reference"), "mode is 'strict', the scores say 'reference'"),
        (lambda f: f.assign(dtype="float16"), "dtype is 'float32', the scores say 'float16'"),
        (lambda f: describe_scores(f, [*scores_of(f)[:-1]]), "metrics is"),
    ],
)
def test_scores_that_are_not_those_of_the_entry(entry, tmp_path, rows, said):
    problems = validate(copy(entry, tmp_path, rows=rows))
    assert any(said in problem for problem in problems)
    assert not any("\n" in problem for problem in problems)


@pytest.mark.slow
def test_an_entry_of_another_place_edit_set_or_backbone(entry, tmp_path):
    def change(content):
        content["backbone"], content["name"] = "tinyworld-turbo@2", "mine"
        content["edits"]["sha256"] = "0" * 64
        content["resamples"] = 10

    problems = validate(copy(entry, tmp_path, change))
    for said in (
        "name is 'mine', its folder is 'sae@1'",
        "there is no 'tinyworld-turbo@2'; did you mean 'tinyworld-turbo@",
        "the shipped set says",
        "10 resamples from seed 0, where every entry has 10000 from seed 0",
    ):
        assert any(said in problem for problem in problems)


def test_a_pickle_in_place_of_the_scores_is_not_opened(entry, tmp_path):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "trapped"), "w"))

    folder = copy(entry, tmp_path)
    (folder / "scores.parquet").write_bytes(pickle.dumps(Trap()))
    assert any("cannot be read" in problem for problem in validate(folder))
    assert not (tmp_path / "trapped").exists()


def saved(picture, *more, **how):
    file = io.BytesIO()
    picture.save(file, **how, **({"save_all": True, "append_images": more} if more else {}))
    return file.getvalue()


SMALL = Image.new("RGB", (8, 8))
NO_PICTURES = {
    "no bytes": (b"", "cannot identify"),
    "words": (b"not a picture", "cannot identify"),
    "a page": (b"<html><script>alert(1)</script></html>", "cannot identify"),
    "cut short": (saved(Image.effect_noise((256, 256), 9), format="PNG")[:-5000], "cannot be read"),
    "another kind": (saved(SMALL, format="JPEG"), "it is a JPEG file"),
    "an animation": (saved(SMALL, Image.new("RGB", (8, 8), "red"), format="PNG"), "several pictures"),
    "too large": (saved(Image.new("RGB", (257, 8)), format="PNG"), "257 x 8 pixels, where 256 x 256 are allowed"),
    "a bomb": (saved(Image.new("1", (30_000, 30_000)), format="PNG"), "cannot be read"),
    "another size": (saved(Image.new("RGB", (8, 9)), format="PNG"), "are of several sizes: .* 8 x 9"),
}


@pytest.mark.parametrize(("data", "said"), NO_PICTURES.values(), ids=NO_PICTURES)
def test_pictures_of_an_entry_are_whole_pictures_of_its_size(entry, tmp_path, data, said):
    folder = copy(entry, tmp_path)
    name = "change_pose-edited.png"
    (folder / "images" / name).write_bytes(data)
    (problem,) = picture_problems(folder / "images", json.loads((folder / "entry.json").read_text())["images"])
    assert name in problem and re.search(said, problem)


@pytest.mark.slow
def test_a_page_in_place_of_a_picture_with_its_hash_is_found(entry, tmp_path):
    folder = copy(entry, tmp_path)
    file = folder / "images" / "change_pose-edited.png"
    file.write_bytes(b"<html><script>alert(1)</script></html>")
    content = json.loads((folder / "entry.json").read_text())
    content["hashes"]["images"][file.name] = hashlib.sha256(file.read_bytes()).hexdigest()
    (folder / "entry.json").write_text(json.dumps(content))
    (problem,) = validate(folder)
    assert f"{file.name} cannot be read" in problem


def link_to_picture(folder, outside):
    (folder / "images" / "change_pose-edited.png").rename(outside / "a.png")
    (folder / "images" / "change_pose-edited.png").symlink_to(outside / "a.png")


def link_to_pictures(folder, outside):
    (folder / "images").rename(outside / "images")
    (folder / "images").symlink_to(outside / "images")


def relative_link(folder, outside):
    (folder / "scores.parquet").rename(outside / "scores.parquet")
    (folder / "scores.parquet").symlink_to(f"../../{outside.name}/scores.parquet")


def link_to_entry(folder, outside):
    (folder / "entry.json").rename(outside / "entry.json")
    (folder / "entry.json").symlink_to(outside / "entry.json")


def further_link(folder, outside):
    (folder / "images" / "etc").symlink_to("/etc")


def broken_link(folder, outside):
    (folder / "nothing.png").symlink_to("nowhere")


def link_within(folder, outside):
    (folder / "images" / "change_pose-edited.png").unlink()
    (folder / "images" / "change_pose-edited.png").symlink_to("change_pose-original.png")


LINKS = (link_to_picture, link_to_pictures, relative_link, link_to_entry, further_link, broken_link, link_within)


@pytest.mark.parametrize("link", LINKS, ids=lambda link: link.__name__)
def test_no_file_of_an_entry_is_a_link(entry, tmp_path, link):
    folder, outside = copy(entry, tmp_path), tmp_path / "outside"
    outside.mkdir()
    link(folder, outside)
    problems = validate(folder)
    assert any("is a link" in problem for problem in problems)
    site = tmp_path / "site"
    if link in (relative_link, link_to_entry):
        with pytest.raises(UserError, match="is a link"):
            read_entry(folder).scores  # noqa: B018
    else:
        render_site(tmp_path / "tinyworld-turbo@1", site)
        shown = {path.name for path in site.rglob("*.png")}
        assert ("change_pose-edited.png" in shown) is (link in (further_link, broken_link))
        assert not any(path.is_symlink() for path in site.rglob("*"))


def test_an_entry_may_lie_in_a_linked_folder(entry, tmp_path):
    (tmp_path / "linked").symlink_to(entry.parent)
    assert read_entry(tmp_path / "linked" / entry.name).scores.equals(read_entry(entry).scores)


@pytest.mark.parametrize(
    "name", ["../entry.json", "/etc/passwd", "..", "a/b.png", "a\\b.png", "a.png\n", "\u202eg.png"]
)
def test_no_file_of_an_entry_lies_elsewhere_by_its_name(entry, tmp_path, name):
    def change(content):
        content["images"][0]["edited"] = name
        content["hashes"]["images"][name] = "0" * 64

    problems = validate(copy(entry, tmp_path, change))
    assert len([problem for problem in problems if "does not match" in problem]) == 2


def test_entries_are_found_below_a_folder(board, entry, tmp_path):
    below = entry_folders(board / "tinyworld-turbo@1")
    assert below == entry_folders(board) and len(below) == 7
    assert entry_folders(entry) == entry_folders(entry / "entry.json") == [entry]
    copy(entry, tmp_path).rename(tmp_path / "tinyworld-turbo@1" / ".sae@1.half")
    with pytest.raises(UserError, match="there is no entry in"):
        entry_folders(tmp_path)


def test_a_folder_without_entries_is_said_to_be(tmp_path):
    with pytest.raises(UserError, match="there is no entry in"):
        read_entries(tmp_path)
    assert len(validate(tmp_path)) == 1


# ---- ranks


def test_ranks_are_scipys():
    means = np.random.default_rng(0).integers(0, 4, size=(50, 5)).astype(float)  # with ties
    np.testing.assert_array_equal(ranks_of(means, higher_is_better=False), scipy.stats.rankdata(means, "min", axis=1))
    np.testing.assert_array_equal(ranks_of(means, higher_is_better=True), scipy.stats.rankdata(-means, "min", axis=1))


def test_two_equals_share_their_ranks_and_a_clear_winner_is_first():
    rng = np.random.default_rng(1)
    shared = 0
    for _ in range(200):
        values = rng.normal(0, 1, size=(40, 1)) + rng.normal([2.0, 0.0, 0.0], 0.5, size=(40, 3))
        low, high = rank_intervals(values, bootstrap_weights(40, 400, rng), higher_is_better=True)
        assert (low[0], high[0]) == (1, 1)
        shared += (low[1], high[1], low[2], high[2]) == (2, 3, 2, 3)
    assert shared >= 0.9 * 200  # both places, unless chance parts them: the level is 95 %


def test_rank_intervals_are_those_of_a_slow_bootstrap():
    rng = np.random.default_rng(2)
    values = rng.normal([0.0, 0.1, 0.2, 1.0], 0.4, size=(15, 4))
    drawn = [rng.integers(0, 15, 15) for _ in range(500)]
    weights = np.array([[np.mean(one == edit) for edit in range(15)] for one in drawn])
    found = []
    for one in drawn:
        means = [values[one, k].mean() for k in range(4)]
        found.append([1 + sum(other < mean for other in means) for mean in means])
    low, high = rank_intervals(values, weights, higher_is_better=False)
    for k, ranks in enumerate(np.sort(np.array(found), axis=0).T):
        assert (low[k], high[k]) == (ranks[12], ranks[487])  # of 500, the 2.5 % and 97.5 % points


def test_entries_are_ranked_in_the_direction_of_the_metric(board):
    entries = read_entries(board)
    by_gain = rank_entries(entries, "clip_text_edited", resamples=500)
    assert [one.entry.name for one in by_gain[:4]] == ["oracle-prompt", "sae@2", "sae@1", "text-selected"]
    assert (by_gain[0].rank, by_gain[0].rank_low, by_gain[0].rank_high) == (1, 1, 1)
    assert {(one.rank_low, one.rank_high) for one in by_gain[4:]} <= {(5, 7), (5, 6), (6, 7)}  # noop and random, twice
    by_cost = rank_entries(entries, "lpips_original", "change_pose", resamples=500)
    assert (by_cost[0].entry.name, by_cost[0].value.mean, by_cost[0].edits, by_cost[0].cases) == ("noop", 0.0, 2, 6)
    assert by_cost[-1].entry.name == "oracle-prompt"
    directional = rank_entries(entries, "clip_directional", resamples=500)
    assert "noop" not in [one.entry.name for one in directional]  # no image changed, so there is no direction
    assert rank_entries(entries, "psnr", resamples=500) == []


@pytest.mark.slow
def test_entries_are_ranked_on_the_cases_that_all_of_them_have(tmp_path, board):
    run = write_run(tmp_path / "run", make_frame(failed=[("add_object-0", 42, "text-selected")]))
    submit(run, tmp_path / "board", methods=["text-selected", "sae@1"])
    with_failure = rank_entries(read_entries(tmp_path / "board"), "lpips_original", resamples=200)
    assert {one.cases for one in with_failure} == {len(EDITS) * 3 - 1}
    frame = pd.read_parquet(run / "scores.parquet")
    own = frame[(frame.method == "sae") & (frame.strength == 1) & (frame.blocks == EVERY)]
    own = own[~((own.edit == "add_object-0") & (own.seed == 42))]
    (sae,) = [one for one in with_failure if one.entry.name == "sae@1"]
    assert sae.value.mean == pytest.approx(own.groupby("edit").lpips_original.mean().mean(), abs=1e-6)


def test_nobody_is_ranked_by_what_is_withheld_for_one_or_another_on_every_case(entry, tmp_path):
    def withheld(seeds):
        return lambda frame: frame.assign(
            clip_directional=frame.clip_directional.mask(frame.seed.isin(seeds) & (frame.category == "change_pose"))
        )

    entries = [read_entry(copy(entry, tmp_path / name, rows=withheld(s))) for name, s in (("a", [42]), ("b", [43, 44]))]
    assert rank_entries(entries, "clip_directional", "change_pose", resamples=50) == []
    assert len(rank_entries(entries, "lpips_original", "change_pose", resamples=50)) == 2
    assert len(rank_entries(entries, "clip_directional", resamples=50)) == 2


def test_unlike_entries_are_not_ranked_together(entry, tmp_path):
    def another_network(content):
        content["metrics"][1]["network"] = "VGG"

    entries = [read_entry(entry), read_entry(copy(entry, tmp_path / "a", another_network))]
    with pytest.raises(UserError, match="network of lpips_original: 'AlexNet' and 'VGG'"):
        rank_entries(entries, "lpips_original")
    assert len(rank_entries(entries, "clip_text_edited", resamples=50)) == 2
    other_mode = read_entry(copy(entry, tmp_path / "b", lambda content: content.update(mode="reference")))
    with pytest.raises(UserError, match="mode: 'strict' and 'reference'"):
        rank_entries([entries[0], other_mode], "lpips_original")
    other_seeds = read_entry(copy(entry, tmp_path / "c", rows=lambda frame: frame.assign(seed=frame.seed + 10)))
    with pytest.raises(UserError, match="no case of 'all' has lpips_original under all of"):
        rank_entries([entries[0], other_seeds], "lpips_original")


# ---- splits


@pytest.mark.slow
def test_of_a_set_with_splits_the_test_split_is_what_counts(tmp_path):
    tagged = [replace(edit, tags={"split": "dev" if edit.id.endswith("0") else "test"}) for edit in EDITS]
    write_edits(tagged, files.data_folder() / "edits" / "parted" / "all.jsonl")
    held_out = [edit for edit in tagged if edit.tags["split"] == "test"]
    config = {"edits": "parted"}
    good = write_run(tmp_path / "good", make_frame(held_out), config=config, edits={"sha256": set_sha256(held_out)})
    (made,) = submit(good, tmp_path / "board", methods=["text-selected"])
    assert validate(made) == [] and json.loads((made / "entry.json").read_text())["edits"]["count"] == len(held_out)
    for name, edits, words in (
        ("all", tagged, "has 27 beside the 27 cases"),
        ("dev", tagged[::2], "lacks 27 of the 27"),
    ):
        run = write_run(tmp_path / name, make_frame(edits), config=config, edits={"sha256": set_sha256(edits)})
        with pytest.raises(UserError, match=words):
            submit(run, tmp_path / "refused", methods=["text-selected"])
