"""One's own: a backbone from a folder, dictionaries, features by number, regions and masks; and images that no one can
score."""

from __future__ import annotations

import dataclasses
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from PIL import Image
from rows import rows_of
from sdxl_blocks import BLOCK_NAMES

import riebench
from riebench.backbones.table import BACKBONES
from riebench.cli import main
from riebench.core.errors import UserError
from riebench.core.files import data_folder
from riebench.dictionaries.prompts import world_prompts
from riebench.edits.edit import load_edits
from riebench.generation.sampler import Request, Sampler
from riebench.runs import engine as engines
from riebench.runs.config import build_config, read_config
from riebench.runs.engine import Engine, open_engine
from riebench.runs.reference import Generation
from riebench.runs.run import run
from riebench.runs.setup import Setup
from sae_models import index
from sae_models.itda import fit_itda
from sae_models.pca import PCA

RED = "flat poster of a standing red plain heart in the sky"
BLUE = RED.replace("red", "blue")
SMALL = {"categories": ["change_colour"], "edits_per_category": 2, "seeds": [42], "methods": ["noop", "sae"]}
SMALL |= {"resamples": 20, "batch_size": 4, "subsets_of": "noop"}
PICTURES = ["image", "original", "edited", "regions"]


@pytest.fixture(scope="module")
def usual(tmp_path_factory):
    """The small run with what is shipped."""
    return run(build_config(SMALL, "here"), tmp_path_factory.mktemp("usual") / "run", device="cpu")


def without_keys(scores: pd.DataFrame) -> pd.DataFrame:
    return scores.drop(columns=["recipe", "code", "scoring", "backbone", *PICTURES])


@pytest.mark.slow
def test_a_folder_of_ones_own_is_a_backbone_from_yaml(usual, tmp_path):
    shutil.copytree(data_folder() / "tinyworld" / "turbo", tmp_path / "mine")
    own = {"name": "mine@1", "like": "tinyworld-turbo@1", "folder": str(tmp_path / "mine")}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(SMALL | {"backbone": own}))
    mine = run(read_config(str(tmp_path / "mine.yaml")), tmp_path / "a", device="cpu")
    assert set(mine.scores.backbone) == {"mine@1"}
    pd.testing.assert_frame_equal(without_keys(mine.scores), without_keys(usual.scores), check_exact=True)
    with pytest.raises(UserError, match="did you mean 'folder'"):
        build_config(SMALL | {"backbone": {**own, "foldr": "x"}}, "here").open_backbone()


@pytest.mark.slow
def test_another_grounder_changes_regions_and_keys(usual, tmp_path):
    everywhere = run(build_config(SMALL | {"grounder": "everything"}, "here"), tmp_path / "a", device="cpu")
    assert (everywhere.scores.cells_original == 64).all() and (usual.scores.cells_original < 64).all()
    assert not set(everywhere.scores.recipe) & set(usual.scores.recipe)
    assert everywhere.manifest["setup"]["grounder"] == {"name": "everything"}
    with pytest.raises(UserError, match="did you mean 'clipseg'"):
        build_config({"grounder": "clipsec"}, "here")


@pytest.mark.slow
def test_dictionaries_of_ones_own_are_used_and_known_by_their_bytes(usual, tmp_path):
    root = index.default_root()
    names = {block: index.find("tinyworld-turbo@1", block, "topk-k4-x4") for block in BLOCK_NAMES}
    for block, entry in names.items():
        shutil.copytree(root / entry.folder, tmp_path / "mine" / block)
    words = {"dictionaries": str(tmp_path / "mine")}
    mine = run(build_config(SMALL | words, "here"), tmp_path / "a", device="cpu")
    named = run(build_config(SMALL | {"dictionary": "topk-k4-x4"}, "here"), tmp_path / "b", device="cpu")
    pd.testing.assert_frame_equal(mine.scores.drop(columns=PICTURES), named.scores.drop(columns=PICTURES))
    one, other = (done.scores[done.scores.method == "sae"] for done in (mine, usual))
    assert not set(one.recipe) & set(other.recipe) and not np.allclose(one.injected_norm, other.injected_norm)
    with pytest.raises(UserError, match="has no dictionary 'topk-k4-x5'"):
        run(build_config(SMALL | {"dictionary": "topk-k4-x5"}, "here"), tmp_path / "d", device="cpu")
    with pytest.raises(UserError, match="there is no folder"):
        run(build_config(SMALL | {"dictionaries": str(tmp_path / "none")}, "here"), tmp_path / "e", device="cpu")


@pytest.mark.slow
def test_an_edit_gives_pictures_masks_features_and_scores(engine):
    done = riebench.edit(RED, BLUE, region="heart", blocks=["up.0.1"], engine=engine, k=3, strength=2)
    assert done.scores["strength"] == 2 and done.scores["blocks"] == "up.0.1"
    assert list(done.features) == ["up.0.1"] and [len(numbers) for numbers in done.features["up.0.1"].values()] == [
        3,
        3,
    ]
    masks = [np.array(mask) for mask in done.masks]
    assert all(mask.shape == (64, 64) and set(np.unique(mask)) == {0, 255} for mask in masks)
    strip = np.array(done.strip(scale=1))
    assert strip.shape == (143, 194, 3)  # each row of pictures stands under 7 px of names
    np.testing.assert_array_equal(strip[7:71, 130:194], np.array(done.intervened))
    np.testing.assert_array_equal(strip[79:143, :64, 0], masks[0])
    large = np.array(done.strip(scale=4))[:28]
    assert all((large[:, left : left + 256] < 128).any() for left in (0, 260, 520))  # something is written above each
    again = riebench.edit(
        RED,
        BLUE,
        region="heart",
        method="chosen",
        on=f"up.0.1:{','.join(map(str, done.features['up.0.1']['on']))}",
        off=f"up.0.1:{','.join(map(str, done.features['up.0.1']['off']))}",
        strength=2,
        engine=engine,
    )
    np.testing.assert_allclose(np.array(again.intervened), np.array(done.intervened), atol=1)


@pytest.mark.slow
def test_a_mask_of_ones_own_is_the_region(engine, tmp_path):
    left = np.zeros((64, 64), dtype=bool)
    left[:, :20] = True
    by_array = riebench.edit(RED, BLUE, region=left, method="dense", engine=engine)
    Image.fromarray(np.where(left, 255, 0).astype(np.uint8)).save(tmp_path / "left.png")
    by_file = riebench.edit(RED, BLUE, region=f"mask:{tmp_path / 'left.png'}", method="dense", engine=engine)
    assert by_array.intervened.tobytes() == by_file.intervened.tobytes()
    np.testing.assert_array_equal(np.array(by_array.masks[0]) > 0, left)
    assert by_array.scores["cells_original"] == 3 * 8  # 20 px touch three columns of 8 px
    both = riebench.edit(RED, BLUE, region=left, edited_region=~left, method="dense", engine=engine)
    np.testing.assert_array_equal(np.array(both.masks[1]) > 0, ~left)
    with pytest.raises(UserError, match=r"give \[height, width\]"):
        riebench.edit(RED, BLUE, region=np.zeros((3, 64, 64)), engine=engine)
    with pytest.raises(UserError, match="64"):
        riebench.edit(RED, BLUE, region=np.ones((10, 10), dtype=bool), engine=engine)


def test_the_bytes_of_a_mask_are_part_of_the_key(tmp_path):
    from riebench.runs.plan import plan, plan_variants

    path = tmp_path / "mask.png"
    item = dataclasses.replace(load_edits()[0], original_region=f"mask:{path}")
    keys = []
    for value in (0, 255):
        Image.fromarray(np.full((64, 64), value, dtype=np.uint8)).save(path)
        variants = plan_variants([riebench.METHODS.get("noop")()], "", BLOCK_NAMES)
        keys.append(plan(BACKBONES.get("tinyworld-turbo@1"), [(item, 1)], variants, Setup())[0].regions.recipe)
    assert keys[0] != keys[1]


@pytest.mark.slow
def test_the_command_writes_a_strip(tmp_path, capsys):
    out = tmp_path / "new" / "strip.png"
    words = ["edit", RED, BLUE, "--region", "heart", "--blocks", "up.0.1", "--set", "k=2", "--set", "mode=adaptive"]
    assert main([*words, "--out", str(out), "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    assert Image.open(out).size == (3 * 256 + 8, 2 * (28 + 256) + 4)
    assert "up.0.1 on: " in said and "CLIP, edited prompt" in said and str(out) in said
    assert main(["edit", RED, BLUE, "--set", "k"]) == 2
    assert "sets nothing" in capsys.readouterr().err
    assert main(["edit", RED, BLUE, "--set", "kk=3", "--device", "cpu"]) == 2
    assert "no setting 'kk'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [(lambda image: image * float("nan"), "holds NaN"), (lambda image: image * 0, "is black")],
)
def test_images_of_an_overflowed_decoder_are_failures_not_scores(engine, monkeypatch, spoil, reason):
    cases = [(edit, 42) for edit in load_edits() if edit.category == "change_colour"][:1]
    variants = engines_variants()
    (reference,) = engine.references(cases, [variant.method for variant in variants])
    regenerate = Sampler.regenerate
    monkeypatch.setattr(Sampler, "regenerate", lambda self, *a: (spoil(image) for image in regenerate(self, *a)))
    noop, sae = engine.results([(reference, variants)])
    assert noop.row["status"] == "ok" and sae.row["status"] == "failed" and sae.image is None
    assert reason in sae.row["reason"] and "float32" in sae.row["reason"] and np.isnan(sae.row["lpips_original"])


def engines_variants():
    from riebench.runs.plan import plan_variants

    return plan_variants([riebench.METHODS.get(name)() for name in ("noop", "sae")], "", BLOCK_NAMES)


def test_a_black_reference_fails_the_case(engine, monkeypatch):
    generate = Sampler.generate

    def black(self, *args, **kwargs):
        return [dataclasses.replace(sample, image=sample.image * 0) for sample in generate(self, *args, **kwargs)]

    monkeypatch.setattr(Sampler, "generate", black)
    (reference,) = engine.references([(load_edits()[0], 42)])
    assert "a reference image is black" in reference.failure


@pytest.mark.slow
def test_where_memory_is_short_fewer_cases_go_together_and_nothing_changes(tmp_path, monkeypatch):
    sizes = []
    begin = Engine._begin
    monkeypatch.setattr(Engine, "_begin", lambda self, tasks, *a: sizes.append(len(tasks)) or begin(self, tasks, *a))
    config = build_config(SMALL | {"seeds": [42, 43]}, "here")
    plenty = run(config, tmp_path / "a", device="cpu")
    assert max(sizes) == 4
    sizes.clear()
    monkeypatch.setattr(engines, "TRACES_SHARE", 1e-12)
    short = run(config, tmp_path / "b", device="cpu")
    assert sizes == [1, 1, 1, 1]
    pd.testing.assert_frame_equal(plenty.scores, short.scores, check_exact=True)


@pytest.mark.slow
def test_half_precision_on_the_cpu_is_another_setup_with_nearly_the_same_pictures(engine):
    half = open_engine("tinyworld-turbo@1", "cpu", setup=Setup(dtype="bfloat16"), batch_size=2)
    assert half.sampler.denoiser.dtype == torch.bfloat16
    whole, rounded = (riebench.edit(RED, BLUE, region="heart", method="dense", engine=one) for one in (engine, half))
    assert rounded.scores["dtype"] == "bfloat16" and rounded.scores["status"] == "ok"
    difference = np.abs(np.array(whole.intervened, dtype=float) - np.array(rounded.intervened, dtype=float)).mean()
    assert 0 < difference < 8


@pytest.mark.slow
@pytest.mark.parametrize(("height", "width"), [(64, 96), (96, 64), (128, 128), (56, 72)])
@pytest.mark.parametrize("name", ["sae", "neurons", "dense"])
def test_pictures_of_any_size_are_traced_edited_and_replayed(engine, height, width, name):
    backbone = dataclasses.replace(engine.backbone, name="other@1", height=height, width=width, grounder="everything")
    other = Engine(Generation(Sampler(backbone, engine.sampler.pipeline, batch_size=2), Setup()))
    method = riebench.METHODS.get(name)()
    edit = dataclasses.replace(load_edits()[0], original_region="everything", edited_region="everything")
    (reference,) = other.references([(edit, 42)], [method])
    grid = (-(-height // 8), -(-width // 8))
    assert set(reference.case.grids.values()) == {grid} and reference.pictures.original.shape == (3, height, width)
    assert {value.shape[1] for value in reference.sample.trace.values()} == {grid[0] * grid[1]}
    assert reference.case.original_cells["mid.0"].shape == (grid[0] * grid[1],) and not reference.failure
    plan = method.plan(reference.seen("neurons" if name == "neurons" else "update"))
    assert plan.norm == other.plan(reference, method).norm > 0
    request = Request(edit.original_prompt, 42, plan)
    whole = other.sampler.generate([request])[0].image
    (replayed,) = other.sampler.regenerate([request], [reference.sample])
    assert torch.equal(whole, replayed) and not torch.equal(whole, reference.sample.image)


@pytest.mark.slow
def test_every_result_under_guidance_says_its_branch_and_window(tmp_path):
    methods = [
        "noop",
        {"name": "sae", "branch": "cond"},
        {"name": "dense", "window": "first 5"},
        {"name": "dense", "label": "late", "window": "last 5", "branch": "uncond"},
    ]
    words = SMALL | {"backbone": "tinyworld-base@25", "methods": methods, "edits_per_category": 1}
    words |= {"batch_size": 2, "subsets_of": "noop"}  # 25 steps of two rows each: no more than is looked at
    scores = run(build_config(words, "here"), tmp_path, device="cpu").scores
    assert (scores.status == "ok").all()
    said = {row.method: (row.branch, row.window) for row in scores.itertuples()}
    expected = {"sae": ("cond", "all"), "dense": ("both", "first 5"), "late": ("uncond", "last 5"), "noop": ("", "")}
    assert said == expected
    changed = scores[scores.method.isin(["dense", "late"])]
    assert changed.image.nunique() == 2 and (changed.lpips_original > 0).all()


@pytest.mark.slow
def test_itda_and_pca_of_ones_own_are_dictionaries_of_a_run(engine, tmp_path):
    rows = rows_of(engine.sampler, BLOCK_NAMES, world_prompts(8, 1), 1)
    found = {}
    for name, fit in (
        ("itda", lambda part: fit_itda([part], fvu_threshold=0.05, max_atoms=64, k=12)),
        ("pca", lambda part: PCA.fit(part, 90)),
    ):
        for block, part in rows.items():
            fit(part).save(tmp_path / name / block, {})
        words = SMALL | {"dictionaries": str(tmp_path / name)}
        done = run(build_config(words, "here"), tmp_path / f"run-{name}", device="cpu")
        found[name] = done.scores[done.scores.method == "sae"]
        assert (found[name].status == "ok").all() and (found[name].num_features > 0).all()
    assert not np.allclose(found["itda"].injected_norm, found["pca"].injected_norm)
