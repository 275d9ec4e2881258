"""What one does with finished runs and edits on the command line, from the words to the files."""

from __future__ import annotations

import csv
import json
import shutil

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import riebench
from riebench.analysis import read_scores
from riebench.cli import main
from riebench.core.files import data_folder
from riebench.core.scores import scores_of


@pytest.fixture
def finished(small_run, tmp_path):
    return shutil.copytree(small_run.folder, tmp_path / "finished")


def failing(capsys, *words) -> str:
    assert main([str(word) for word in words]) == 2
    return capsys.readouterr().err


@pytest.mark.slow
def test_score_adds_a_column_and_writes_summary_and_report_anew(finished, capsys):
    before = read_scores(finished / "scores.parquet")
    assert main(["score", str(finished), "--metrics", "psnr,mse"]) == 0
    assert str(finished / "report.html") in capsys.readouterr().out
    after = read_scores(finished / "scores.parquet")
    pd.testing.assert_frame_equal(after[before.columns], before)
    row = after[(after.method == "dense") & (after.status == "ok")].iloc[0]
    image, original = (np.asarray(Image.open(finished / row[side])) / 255 for side in ("image", "original"))
    assert row.mse == pytest.approx(((image - original) ** 2).mean(), rel=1e-5)
    assert row.psnr == pytest.approx(-10 * np.log10(((image - original) ** 2).mean()), rel=1e-5)
    summary = json.loads((finished / "summary.json").read_text())
    assert {"psnr", "mse"} <= {score["name"] for score in summary["scores"]}
    assert list(summary["categories"])[:3] == ["change_object", "add_object", "delete_object"]  # the protocol's order
    assert "psnr" in (finished / "report.html").read_text().lower()


@pytest.mark.slow
def test_a_metric_of_ones_own_is_scored_by_name(finished, capsys):
    class Redness:
        name, higher_is_better, bounds = "redness", None, (0.0, 1.0)
        summary = "mean red"

        def __init__(self, models):
            pass

        def score(self, batch):
            return batch.intervened[:, 0].double().mean(dim=(1, 2)).numpy()

    riebench.METRICS.add("redness", Redness)
    assert main(["score", str(finished), "--metrics", "redness"]) == 0
    frame = read_scores(finished / "scores.parquet")
    row = frame[frame.status == "ok"].iloc[-1]
    assert row.redness == pytest.approx(np.asarray(Image.open(finished / row.image))[..., 0].mean() / 255, rel=1e-5)
    assert {score.name: score.better for score in scores_of(frame)}["redness"] == "neither"
    assert "did you mean 'mse'" in failing(capsys, "score", finished, "--metrics", "mze")


@pytest.mark.slow
def test_compare_prints_a_table_and_writes_it(finished, tmp_path, capsys):
    words = ["compare", str(finished), "--against", "random", "--metrics", "lpips_original"]
    assert main([*words, "--out", str(tmp_path / "out")]) == 0
    assert "every method against `random`" in capsys.readouterr().out
    scores = read_scores(finished / "scores.parquet")
    whole = scores[scores.blocks.isin(["", "down.2.1+mid.0+up.0.0+up.0.1"])]
    means = whole.groupby("method").lpips_original.mean()
    with (tmp_path / "out" / "compare.csv").open() as file:
        rows = {row["method"]: row for row in csv.DictReader(file) if row["category"] == "all"}
    assert float(rows["dense"]["difference"]) == pytest.approx(means["dense"] - means["random"], abs=1e-9)
    assert main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["against"] == "random"


@pytest.mark.slow
def test_dominance_stands_runs_beside_each_other(finished, tmp_path, capsys):
    again = shutil.copytree(finished, tmp_path / "again")
    assert main(["dominance", str(finished), str(again), "--out", str(tmp_path / "effects.csv")]) == 0
    table = capsys.readouterr().out
    assert "change_object" in table and "not separable" in table  # one edit a category
    effects = pd.read_csv(tmp_path / "effects.csv")
    assert set(effects.run) == {"finished", "again"}
    of_all = effects[(effects.category == "all") & (effects.value == "lpips_original") & (effects.run == "again")]
    scores = read_scores(again / "scores.parquet")
    every = scores[scores.blocks == "down.2.1+mid.0+up.0.0+up.0.1"]
    cost = every[every.method == "sae"].lpips_original.mean()
    assert of_all.shapley.sum() == pytest.approx(cost, rel=1e-6)  # the blocks' values add up to what all cost together
    assert "is no run directory" in failing(capsys, "dominance", tmp_path / "nowhere")


@pytest.mark.slow
def test_edits_are_validated_from_an_example_on(tmp_path, capsys):
    mine = tmp_path / "mine.yaml"
    assert main(["new-edits", str(mine)]) == 0 and main(["validate", str(mine), "riebench", "tinyworld"]) == 0
    assert "3 in order" in capsys.readouterr().out
    mine.write_text(mine.read_text().replace("category: change_colour", "category: change_color"))
    message = failing(capsys, "validate", mine)
    assert "did you mean 'change_colour'" in message and "1 of 1 are not in order" in message
    assert "there is no edit set" in failing(capsys, "validate", tmp_path / "none.yaml")


def test_a_published_list_is_imported(tmp_path, capsys):
    item = {
        "id": 7,
        "editing_type_id": 6,
        "original_prompt": "a [red] kite over a beach",
        "editing_prompt": "a [blue] kite over a beach",
        "editing_instruction": "make it blue",
        "original_gsam_prompt": "kite",
        "editing_gsam_prompt": "kite",
    }
    (tmp_path / "list.json").write_text(json.dumps([item, item | {"id": 8, "editing_type_id": 0}]))
    assert main(["import", "riebench", str(tmp_path / "list.json"), "--out", str(tmp_path / "edits")]) == 0
    assert "1 edits taken" in (out := capsys.readouterr().out) and "1 dropped" in out
    (edit,) = riebench.load_edits(tmp_path / "edits")
    assert (edit.category, edit.original_region) == ("change_colour", "kite")
    assert main(["validate", str(tmp_path / "edits")]) == 0


def test_a_run_takes_the_test_split_where_there_is_one():
    from riebench.runs.config import build_config
    from riebench.runs.edits import choose_edits

    edits = riebench.load_edits("riebench")
    chosen = {
        split: choose_edits(edits, build_config({"split": split}, "here")) for split in ("", "dev", "test", "all")
    }
    assert [len(chosen[split]) for split in ("", "dev", "test", "all")] == [360, 180, 360, 540]
    assert chosen[""] == chosen["test"] and not set(chosen["dev"]) & set(chosen["test"])
    assert len(choose_edits(riebench.load_edits("tinyworld"), build_config({}, "here"))) == 540


@pytest.mark.slow
def test_the_leaderboard_s_run_cannot_be_short(finished, tmp_path, capsys):
    message = failing(capsys, "submit", finished, "--methods", "sae", "--out", tmp_path / "board")
    assert "cannot be an entry" in message and "three seeds" in message
    assert not (tmp_path / "board").exists() or not list((tmp_path / "board").rglob("entry.json"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "entry", sorted((data_folder() / "leaderboard").rglob("entry.json")), ids=lambda p: p.parent.name
)
def test_every_shipped_entry_is_in_order(entry, capsys):
    """Every figure is computed again from the scores beside it."""
    assert main(["validate", str(entry.parent)]) == 0, capsys.readouterr().err
