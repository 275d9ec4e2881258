"""`riebench score` on a Ray cluster: the scores of one machine, whatever becomes of the workers."""

from __future__ import annotations

import shutil
from pathlib import Path

import pandas as pd
import pytest
from ray_nodes import needs_ray

import riebench.runs.ray as on_cluster
from riebench.analysis.frames import read_scores
from riebench.cli import main
from riebench.core.errors import UserError
from riebench.core.ray_cluster import Terms
from riebench.core.threads import threads
from riebench.core.versions import installed_sources
from riebench.methods.modes import MODES
from riebench.runs import rescore
from riebench.runs.ray import ScoreWorker
from riebench.runs.rescore import CHECKPOINT, score_run

ADDED = ["mse", "ssim"]


@pytest.fixture
def folder(small_run, tmp_path):
    """A copy of a run."""
    return Path(shutil.copytree(small_run.folder, tmp_path / "run"))


def falling(marker):
    """A scorer whose node falls at the first part that it is given."""

    class Falling(ScoreWorker):
        def work(self, part):
            import ray_nodes

            ray_nodes.fall_here(Path(marker))
            return super().work(part)

    return Falling


@pytest.mark.process
@needs_ray
def test_scores_are_those_of_one_machine_where_a_node_falls(folder, nodes, cluster, tmp_path, monkeypatch, capsys):
    other = Path(shutil.copytree(folder, tmp_path / "other"))
    with threads(1):
        alone = score_run(other, ADDED, "cpu")
    monkeypatch.setattr(rescore, "RESCORED", 32)
    monkeypatch.setattr(rescore, "CHECKPOINT_ROWS", 32)
    monkeypatch.setattr(on_cluster, "ScoreWorker", falling(tmp_path / "fallen"))
    saved, real = [], rescore._write_checkpoint
    monkeypatch.setattr(rescore, "_write_checkpoint", lambda *words: saved.append([*words[2]]) or real(*words))
    with nodes.one_falls(tmp_path / "fallen"):
        assert main(["score", str(folder), "--metrics", ",".join(ADDED), "--engine", "ray"]) == 0
    pd.testing.assert_frame_equal(read_scores(folder / "scores.parquet"), alone, check_exact=True)
    ok = alone[alone["status"] == "ok"]
    assert saved, "what is scored is kept meanwhile"
    for rows in saved:  # the first rows, in their order, whichever came first
        assert [row["mse"] for row in rows] == ok["mse"].tolist()[: len(rows)]
    told, said = capsys.readouterr()
    assert "report:" in told
    assert "a worker died over part 1 of the results" in said or "a worker died over part 2 of the results" in said
    assert f"scoring: {len(ok)}/{len(ok)} results" in said and not (folder / CHECKPOINT).exists()


@pytest.mark.process
@needs_ray
def test_a_cluster_that_cannot_score_leaves_the_run_as_it_was(folder, cluster, capsys):
    before = (folder / "scores.parquet").read_bytes()
    assert main(["score", str(folder), "--metrics", "psnr", "--engine", "ray", "--device", "cuda"]) == 2
    assert "the Ray cluster has no GPU (3 nodes)" in capsys.readouterr().err
    assert (folder / "scores.parquet").read_bytes() == before


def test_a_scorer_of_other_metrics_refuses():
    with pytest.raises(UserError, match="the metrics on .* are not those of this command"):
        ScoreWorker().load(Terms("cpu", installed_sources(), ()), "tinyworld", MODES["strict"], ["mse"], "another")


def test_a_part_is_what_lies_in_the_folder_and_names_a_broken_picture(folder):
    rows = read_scores(folder / "scores.parquet").query("status == 'ok'")[:3]
    edits = {name: name for name in rows["edit"]}
    (part,) = rescore._parts(folder, rows, edits)
    shared = [items[1] for items in part.items()]
    assert shared[0] is shared[1], "the pictures of a case are read once"
    broken = dict(part.files) | {rows["image"].iloc[1]: b"no picture"}
    with pytest.raises(UserError, match=f"picture {rows['image'].iloc[1]} cannot be read".replace("+", ".")):
        rescore.Part(part.rows, broken).items()
