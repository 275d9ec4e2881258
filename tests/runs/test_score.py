"""`riebench score`: the scores of a run, made again from its pictures, are the run's own."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from riebench.analysis.frames import read_scores, write_scores
from riebench.cli import main
from riebench.core.errors import UserError
from riebench.core.scores import METRICS_KEY, describe_scores, scores_of
from riebench.edits.edit import load_edits, write_edits
from riebench.metrics import METRICS, default_metrics, describe
from riebench.runs import rescore as score
from riebench.runs.config import MethodConfig, RunConfig
from riebench.runs.rescore import CHECKPOINT, score_run
from riebench.runs.run import run
from riebench.runs.scoring import Scorer

ADDED = ["psnr_outside", "ssim_outside", "clip_region_edited", "edit_efficiency", "oracle_preservation"]
CONFIG = RunConfig(
    categories=("add_object", "change_style", "change_colour"),
    edits_per_category=1,
    seeds=(42,),
    methods=tuple(MethodConfig(name) for name in ("noop", "oracle-prompt", "dense")),
    subsets_of="dense",
    batch_size=8,
    resamples=10,
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of three cases; it is not changed."""
    return run(CONFIG, tmp_path_factory.mktemp("run"), device="cpu").folder


@pytest.fixture
def folder(finished, tmp_path):
    """A copy of the run, without the scores in `ADDED`."""
    copy = tmp_path / "run"
    shutil.copytree(finished, copy)
    frame = read_scores(copy / "scores.parquet")
    kept = [score for score in scores_of(frame) if score.name not in ADDED]
    write_scores(describe_scores(frame.drop(columns=ADDED), kept), copy / "scores.parquet")
    return copy


def edit_manifest(folder, change):
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def rewrite(folder, **columns):
    write_scores(read_scores(folder / "scores.parquet").assign(**columns), folder / "scores.parquet")


@pytest.mark.slow
def test_metrics_that_are_added_are_what_the_run_itself_would_have_had(finished, folder):
    before = read_scores(folder / "scores.parquet")
    found = score_run(folder, ADDED, "cpu")
    own = read_scores(finished / "scores.parquet")
    pd.testing.assert_frame_equal(found[ADDED], own[ADDED], check_exact=False, rtol=0, atol=1e-6)
    pd.testing.assert_frame_equal(found[before.columns], before, check_exact=True)
    assert {score.name: score for score in scores_of(found)} == {score.name: score for score in scores_of(own)}
    assert [score.name for score in scores_of(found)] == [s.name for s in scores_of(before)] + ADDED
    pd.testing.assert_frame_equal(read_scores(folder / "scores.parquet"), found, check_exact=True)
    assert not (folder / CHECKPOINT).exists()


def test_metrics_that_are_there_are_left_alone(folder, monkeypatch):
    before = (folder / "scores.parquet").read_bytes()
    monkeypatch.setattr(score, "Scorer", None)
    score_run(folder, ["lpips_original", "clip_text_edited"], "cpu")
    assert (folder / "scores.parquet").read_bytes() == before


def test_a_metric_by_name_is_described_and_failures_stay_without_it(folder):
    frame = read_scores(folder / "scores.parquet")
    status = ["failed" if i == 4 else "ok" for i in range(len(frame))]
    scored = [s.name for s in scores_of(frame)]
    frame.loc[4, scored] = np.nan
    frame.loc[4, "image"] = ""
    write_scores(
        frame.assign(status=status, reason=["no region" if s == "failed" else "" for s in status]),
        folder / "scores.parquet",
    )
    found = score_run(folder, ["mse"], "cpu")
    assert np.flatnonzero(found["mse"].isna()).tolist() == [4]
    assert scores_of(found)[-1] == describe(["mse"], "tinyworld")[0]
    for row in (0, 5, 11):
        pictures = [np.asarray(Image.open(folder / found.loc[row, name])) / 255 for name in ("image", "original")]
        assert found.loc[row, "mse"] == pytest.approx(np.mean((pictures[0] - pictures[1]) ** 2), rel=1e-5, abs=1e-12)


def test_the_regions_that_are_named_are_taken_and_no_others(finished, folder):
    path = next(folder.glob("images/add_object-00/42/regions-*.png"))
    shutil.copy(path, path.with_name("regions-0123456789ab.png"))
    found = score_run(folder, ["psnr_outside"], "cpu")
    own = read_scores(finished / "scores.parquet")
    np.testing.assert_allclose(found["psnr_outside"], own["psnr_outside"], rtol=0, atol=1e-6)
    path.unlink()
    refused(folder, rf"1 of \d+ pictures are missing, the first is .*{path.name}")


def test_a_frame_that_does_not_say_what_its_scores_are_is_scored_all_the_same(finished, folder):
    frame = read_scores(folder / "scores.parquet")
    frame.attrs.pop(METRICS_KEY)
    write_scores(frame, folder / "scores.parquet")
    found = score_run(folder, ["psnr_outside", "clip_region_edited"], "cpu")
    own = read_scores(finished / "scores.parquet")
    for name in ("psnr_outside", "clip_region_edited"):
        np.testing.assert_allclose(found[name], own[name], rtol=0, atol=1e-6)


@pytest.mark.slow
def test_what_is_scored_before_a_kill_is_not_scored_again(finished, folder, monkeypatch):
    monkeypatch.setattr(score, "RESCORED", 8)
    monkeypatch.setattr(score, "CHECKPOINT_ROWS", 16)
    scored = []

    class Dying(Scorer):
        def score(self, rows):
            scored.append(len(rows))
            if sum(scored) > 40:
                raise KeyboardInterrupt
            return super().score(rows)

    with monkeypatch.context() as patch:
        patch.setattr(score, "Scorer", Dying)
        with pytest.raises(KeyboardInterrupt):
            score_run(folder, ADDED, "cpu")
    assert len(pd.read_parquet(folder / CHECKPOINT)) == 32
    assert not set(ADDED) & set(read_scores(folder / "scores.parquet").columns)
    scored.clear()

    class Counting(Scorer):
        def score(self, rows):
            scored.append(len(rows))
            return super().score(rows)

    monkeypatch.setattr(score, "Scorer", Counting)
    found = score_run(folder, ADDED, "cpu")
    assert sum(scored) == len(found) - 32
    own = read_scores(finished / "scores.parquet")
    pd.testing.assert_frame_equal(found[ADDED], own[ADDED], check_exact=False, rtol=0, atol=1e-6)


def test_a_checkpoint_of_other_scores_or_metrics_is_not_believed(folder, monkeypatch):
    rows = len(read_scores(folder / "scores.parquet"))
    wrong = [{"mse": 0.5}] * rows
    score._write_checkpoint(folder / CHECKPOINT, "another version", wrong)
    assert (score_run(folder, ["mse"], "cpu")["mse"] != 0.5).all()


def refused(folder, words, metrics=("mse",)):
    before = (folder / "scores.parquet").read_bytes()
    with pytest.raises(UserError, match=words):
        score_run(folder, list(metrics), "cpu")
    assert (folder / "scores.parquet").read_bytes() == before and not (folder / CHECKPOINT).exists()


def test_runs_and_metrics_that_cannot_be_scored_are_refused_before_anything_is(folder, monkeypatch):
    monkeypatch.setattr(score, "Scorer", None)
    refused(folder, "did you mean 'lpips_vgg_original'", ["lpips_vgg_orignal"])
    refused(folder, "did you mean 'ViT-B-32/laion400m_e32'", ["clip_text_edited@ViT-B-32/laion400m_e33"])
    edit_manifest(folder, lambda manifest: manifest.update(status="interrupted"))
    refused(folder, r"is not finished \(interrupted\) -> run it to its end")
    edit_manifest(folder, lambda manifest: manifest.update(status="finished"))
    edit_manifest(folder, lambda manifest: manifest["config"].update(backbone="sdxl-turbo@1"))
    refused(folder, "oracle reads tinyworld's pictures, not those of sdxl", ["oracle_preservation"])
    with pytest.raises(UserError, match="elsewhere is no run directory -> give the folder of a finished"):
        score_run(folder / "elsewhere", ["mse"], "cpu")
    (folder / "manifest.json").unlink()
    refused(folder, "manifest .* does not exist")


def test_a_run_of_edits_of_its_own_is_refused(folder, monkeypatch):
    monkeypatch.setattr(score, "Scorer", None)
    edit_manifest(folder, lambda manifest: manifest["edits"].update(sha256="0" * 64))
    refused(folder, "made of other edits than those of the same ids")
    names = read_scores(folder / "scores.parquet")["edit"]
    rewrite(folder, edit=names.replace({"change_colour-00": "mine"}))
    refused(folder, "edits of its own: 'mine' is not in the edit set 'tinyworld'")


def test_missing_and_changed_pictures_are_named(folder):
    frame = read_scores(folder / "scores.parquet")
    gone = frame["image"][(frame["method"] == "dense") & (frame["blocks"] != "")].iloc[[1, 3]]
    for path in gone:
        (folder / path).unlink()
    refused(folder, rf"2 of \d+ pictures are missing, the first is .*{Path(gone.iloc[0]).name.replace('+', '.')}")
    for path in gone:
        Image.fromarray(np.zeros((64, 64, 3), dtype=np.uint8)).save(folder / path)
    refused(folder, f"{Path(gone.iloc[0]).name.replace('+', '.')} is not the one that was made")


def test_a_folder_that_another_process_writes_to_is_refused(folder):
    from riebench.core.files import lock_folder

    with lock_folder(folder, ".lock", lambda: UserError("busy")):
        refused(folder, "another riebench is writing")


def test_reference_mode_scores_prompts_with_their_marks(folder, monkeypatch):
    asked = []

    class Noting(Scorer):
        def __init__(self, *given, **settings):
            asked.append(settings["keep_marks"])
            super().__init__(*given, **settings)

    monkeypatch.setattr(score, "Scorer", Noting)
    edit_manifest(folder, lambda manifest: manifest.update(mode="reference"))
    (found,) = scores_of(score_run(folder, ["clip_region_edited"], "cpu"))[-1:]
    assert asked == [True] and "[ ]" in found.preprocessing


def test_a_metric_of_ones_own_is_scored_like_any_other(folder):
    @METRICS.register("redness", "mean of the red channel")
    class Redness:
        name, higher_is_better, bounds, summary = "redness", None, (0.0, 1.0), "mean of the red channel"

        def __init__(self, models):
            pass

        def score(self, batch):
            return batch.intervened[:, 0].double().mean(dim=(1, 2)).numpy()

    found = score_run(folder, ["redness"], "cpu")
    red = np.asarray(Image.open(folder / found.loc[3, "image"]))[:, :, 0].mean() / 255
    assert found.loc[3, "redness"] == pytest.approx(red, abs=1e-6)
    assert scores_of(found)[-1].name == "redness" and "redness" not in default_metrics("tinyworld")


@pytest.fixture
def moved(folder, tmp_path):
    """The run as one of a user's own edits, and where these are."""
    own = tmp_path / "sets" / "mine.jsonl"
    own.parent.mkdir()
    write_edits(load_edits("tinyworld"), own)
    edit_manifest(folder, lambda manifest: manifest["config"].update(edits=str(own)))
    return folder, own


def test_a_run_of_own_edits_is_scored_from_another_folder(moved, tmp_path, monkeypatch, capsys):
    folder, own = moved
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert main(["score", "../run", "--metrics", "mse", "--device", "cpu"]) == 0
    own.rename("mine.jsonl")
    capsys.readouterr()
    assert main(["score", "../run", "--metrics", "psnr", "--device", "cpu"]) == 2
    said = capsys.readouterr().err
    assert f"no edit set '{own}'" in said and "say with --edits where they are now" in said
    assert main(["score", "../run", "--metrics", "psnr", "--device", "cpu", "--edits", "mine.jsonl"]) == 0
    assert {"mse", "psnr"} <= set(read_scores(folder / "scores.parquet").columns)


def test_other_edits_than_those_of_the_run_are_refused(moved, tmp_path):
    folder, own = moved
    write_edits([dataclasses.replace(edit, edited_prompt="a hat") for edit in load_edits("tinyworld")], own)
    refused(folder, "other edits than those of the same ids")
