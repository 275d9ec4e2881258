"""`riebench score`: further metrics for a finished run, from its pictures. Nothing is generated."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import pandas as pd
import torch

from riebench.analysis.frames import read_scores, write_scores
from riebench.analysis.run import SCORES, Run
from riebench.backbones.loading import choose_device
from riebench.backbones.own import backbone_from
from riebench.backbones.table import BACKBONES, Backbone
from riebench.core import files
from riebench.core.errors import UserError
from riebench.core.files import file_sha256
from riebench.core.keys import digest
from riebench.core.pictures import from_array, read_picture, regions_from_array
from riebench.core.precision import describe_float32, set_tf32
from riebench.core.progress import Progress
from riebench.core.scores import describe_scores, scores_of
from riebench.edits.edit import Edit, load_edits, set_sha256
from riebench.methods.modes import mode_named
from riebench.metrics import check_names, describe
from riebench.metrics.versions import judge_version
from riebench.runs.pictures import Pictures
from riebench.runs.resume import RESCORED
from riebench.runs.scoring import Scorer
from riebench.runs.store import LOCK

CHECKPOINT = "scoring.parquet"  # what is scored so far
CHECKPOINT_ROWS = 1024  # between two checkpoints: what a kill costs
PICTURES = ("original", "edited", "regions")  # the columns that name the pictures of a case


def score_run(folder: Path, metrics: Sequence[str], device: str = "auto") -> pd.DataFrame:
    """Scores a finished run by further metrics and writes its `scores.parquet` anew, with all other columns as they
    were. Metrics that the run has already are left alone. What is scored is kept in `scoring.parquet` meanwhile, so
    that the same command goes on where it was stopped or killed; it is removed at the end.

    Raises `UserError` before anything is scored where the run is not finished, was made of edits that are not in its
    edit set, a metric is unknown or not for its backbone, weights or pictures are missing; and where a picture is not
    the one that was written, or another process writes to the folder.
    """
    run = Run.open(folder)
    busy = UserError(f"another riebench is writing to {run.folder}", remedy="wait for it")
    with files.lock_folder(run.folder, LOCK, lambda: busy):
        return _score(run, metrics, device)


def _score(run: Run, metrics: Sequence[str], device: str) -> pd.DataFrame:
    folder, manifest, frame = run.folder, run.manifest, run.scores
    mode, family = mode_named(manifest["mode"]), _backbone(manifest).judges
    keep_marks = mode.keeps_marks
    check_names(metrics, family)
    new = [name for name in metrics if name not in frame.columns]
    if not new:
        return frame
    edits = _edits(frame, manifest)
    rows = frame[frame["status"] == "ok"]
    _check_pictures(folder, rows)
    where = choose_device(device)
    float32 = describe_float32(where.type, products=mode.tf32_products)
    version = digest([file_sha256(folder / SCORES), judge_version(new, family, keep_marks=keep_marks), float32])
    done = _read_checkpoint(folder / CHECKPOINT, version)
    if len(done) < len(rows):
        set_tf32(where.type, products=mode.tf32_products)
        scorer = Scorer(family, where, keep_marks=keep_marks, names=new)
        done = _score_rows(folder, rows, edits, scorer, done, version)
    scores = pd.DataFrame(done, columns=new, index=rows.index).reindex(frame.index)  # empty for failures
    described = (*scores_of(frame), *describe(new, family, keep_marks=keep_marks))
    found = describe_scores(frame.assign(**scores), described)
    write_scores(found, folder / SCORES)
    (folder / CHECKPOINT).unlink(missing_ok=True)
    return read_scores(folder / SCORES)


def _score_rows(
    folder: Path,
    rows: pd.DataFrame,
    edits: Mapping[str, Edit],
    scorer: Scorer,
    done: list[dict[str, float]],
    version: str,
) -> list[dict[str, float]]:
    """Returns metric -> value of every row, of which the first are done; with a checkpoint now and then."""
    saved = len(done)
    items = _items(folder, rows.iloc[len(done) :], edits)
    with Progress("scoring", len(rows), len(done), "result") as progress:
        while len(done) < len(rows):
            done += scorer.score([next(items) for _ in range(min(RESCORED, len(rows) - len(done)))])
            if len(done) - saved >= CHECKPOINT_ROWS:
                saved = len(done)
                _write_checkpoint(folder / CHECKPOINT, version, done)
            progress.update(len(done))
    return done


def _items(
    folder: Path, rows: pd.DataFrame, edits: Mapping[str, Edit]
) -> Iterator[tuple[Edit, Pictures, torch.Tensor]]:
    """Yields what a `Scorer` takes, row by row; the pictures of a case are read once."""

    @lru_cache(maxsize=1)
    def of_case(original: str, edited: str, regions: str) -> Pictures:
        images = [from_array(read_picture(folder / path)) for path in (original, edited)]
        return Pictures(*images, regions_from_array(read_picture(folder / regions)))

    for row in rows.itertuples(index=False):
        path = folder / row.image
        if file_sha256(path) != row.image_sha256:
            raise UserError(f"picture {path} is not the one that was made", remedy="run the same `riebench run` again")
        yield edits[row.edit], of_case(row.original, row.edited, row.regions), from_array(read_picture(path))


def _backbone(manifest: Mapping) -> Backbone:
    named = manifest["config"]["backbone"]
    return backbone_from(named, "the manifest's backbone") if isinstance(named, Mapping) else BACKBONES.get(named)


def _edits(frame: pd.DataFrame, manifest: Mapping) -> dict[str, Edit]:
    """Returns the run's edits by id. Raises `UserError` where its edit set has them no longer, or never had."""
    name, ids = manifest["config"]["edits"], set(frame["edit"])
    known = [edit for edit in load_edits(name) if edit.id in ids]
    missing = sorted(ids - {edit.id for edit in known})
    if missing:
        raise UserError(
            f"the run has edits of its own: {missing[0]!r} is not in the edit set {name!r}",
            remedy="score it where it is made: give `metrics` to the run",
        )
    if manifest["edits"]["sha256"] != set_sha256(known):
        raise UserError(
            f"the run was made of other edits than those of the same ids in the edit set {name!r}",
            remedy="run it again, or restore the edit set",
        )
    return {edit.id: edit for edit in known}


def _check_pictures(folder: Path, rows: pd.DataFrame) -> None:
    """Raises `UserError` where a picture that the rows name is missing, with the first and how many there are."""
    wanted = dict.fromkeys(path for column in ("image", *PICTURES) for path in rows[column])
    missing = [path for path in wanted if not (folder / path).is_file()]
    if missing:
        raise UserError(
            f"{len(missing)} of {len(wanted)} pictures are missing, the first is {folder / missing[0]}",
            remedy="run the same `riebench run` again: what is missing is made",
        )


def _write_checkpoint(path: Path, version: str, done: Sequence[Mapping[str, float]]) -> None:
    frame = pd.DataFrame(done)
    frame.attrs["version"] = version
    with files.replacing(path) as temporary:
        frame.to_parquet(temporary, index=False)


def _read_checkpoint(path: Path, version: str) -> list[dict[str, float]]:
    """Returns what is scored already, row by row; nothing where the scores, the metrics or their code are no longer
    those."""
    if not path.is_file():
        return []
    frame = pd.read_parquet(path)
    return frame.to_dict("records") if frame.attrs.get("version") == version else []
