"""`riebench score`: further metrics for a finished run, from its pictures. Nothing is generated."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
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
from riebench.core.ray_cluster import cluster_for
from riebench.core.scores import describe_scores, scores_of
from riebench.edits.edit import Edit, set_sha256
from riebench.methods.modes import mode_named
from riebench.metrics import check_names, describe
from riebench.metrics.versions import judge_version
from riebench.runs.pictures import Pictures
from riebench.runs.places import edits_of_run
from riebench.runs.ray import score_on_cluster
from riebench.runs.resume import RESCORED
from riebench.runs.scoring import Scorer
from riebench.runs.store import LOCK

CHECKPOINT = "scoring.parquet"  # what is scored so far
CHECKPOINT_ROWS = 1024  # between two checkpoints: what a kill costs
PICTURES = ("original", "edited", "regions")  # the columns that name the pictures of a case


class _File(io.BytesIO):
    """The content of a file, which messages call by its path."""

    def __init__(self, path: str, content: bytes) -> None:
        super().__init__(content)
        self._path = path

    def __str__(self) -> str:
        return self._path


@dataclass(frozen=True)
class Part:
    """Results that are scored together, with the files of their pictures, so that it can be worked on elsewhere."""

    rows: tuple[tuple[Edit, str, str, str, str], ...]
    """(edit, paths of image, original, edited and regions in the run directory) of each result."""
    files: Mapping[str, bytes]
    """Path -> content."""

    def items(self) -> list[tuple[Edit, Pictures, torch.Tensor]]:
        """Returns what a `Scorer` takes. Raises `UserError` for a picture that is broken."""

        @cache
        def read(path: str) -> np.ndarray:
            return read_picture(_File(path, self.files[path]))

        @cache
        def of_case(original: str, edited: str, regions: str) -> Pictures:
            return Pictures(from_array(read(original)), from_array(read(edited)), regions_from_array(read(regions)))

        return [(edit, of_case(*shared), from_array(read(image))) for edit, image, *shared in self.rows]


def score_run(
    folder: Path,
    metrics: Sequence[str],
    device: str = "auto",
    *,
    edits: str | Path = "",
    engine: str = "local",
    address: str | None = None,
) -> pd.DataFrame:
    """Scores a finished run by further metrics and writes its `scores.parquet` anew, with all other columns as they
    were. Metrics that the run has already are left alone. What is scored is kept in `scoring.parquet` meanwhile, so
    that the same command goes on where it was stopped or killed; it is removed at the end.

    edits: where the run's edits are now; "" looks where they were. engine: "local", or "ray" for a scorer on each GPU
    of the cluster at `address`, or each CPU (`ray_cluster`); the pictures are read here, and the workers see no file of
    the run.

    Raises `UserError` before anything is scored where the run is not finished, was made of edits that are not in its
    edit set, a metric is unknown or not for its backbone, weights or pictures are missing; and where a picture is not
    the one that was written, or another process writes to the folder.
    """
    run = Run.open(folder)
    busy = UserError(f"another riebench is writing to {run.folder}", remedy="wait for it")
    with files.lock_folder(run.folder, LOCK, lambda: busy):
        return _score(run, metrics, device, edits, engine, address)


def _score(
    run: Run, metrics: Sequence[str], device: str, place: str | Path, engine: str, address: str | None
) -> pd.DataFrame:
    folder, manifest, frame = run.folder, run.manifest, run.scores
    mode, family = mode_named(manifest["mode"]), _backbone(manifest).judges
    keep_marks = mode.keeps_marks
    check_names(metrics, family)
    new = [name for name in metrics if name not in frame.columns]
    if not new:
        return frame
    edits = _edits(frame, manifest, place)
    rows = frame[frame["status"] == "ok"]
    _check_pictures(folder, rows)
    scoring = judge_version(new, family, keep_marks=keep_marks)
    with cluster_for(engine, device, address) as cluster:
        where = cluster.device if cluster else choose_device(device).type
        float32 = describe_float32(where, products=mode.tf32_products)
        version = digest([file_sha256(folder / SCORES), scoring, float32])
        done = _read_checkpoint(folder / CHECKPOINT, version)
        if len(done) < len(rows):
            parts = _parts(folder, rows.iloc[len(done) :], edits)
            if cluster:
                found = score_on_cluster(parts, cluster, family, mode, new, scoring)
            else:
                set_tf32(where, products=mode.tf32_products)
                scorer = Scorer(family, where, keep_marks=keep_marks, names=new)
                found = ((number, scorer.score(part.items())) for number, part in enumerate(parts))
            done = _gather(folder / CHECKPOINT, found, done, len(rows), version)
    scores = pd.DataFrame(done, columns=new, index=rows.index).reindex(frame.index)  # empty for failures
    described = (*scores_of(frame), *describe(new, family, keep_marks=keep_marks))
    found = describe_scores(frame.assign(**scores), described)
    write_scores(found, folder / SCORES)
    (folder / CHECKPOINT).unlink(missing_ok=True)
    return read_scores(folder / SCORES)


def _gather(
    checkpoint: Path,
    found: Iterable[tuple[int, list[dict[str, float]]]],
    done: list[dict[str, float]],
    total: int,
    version: str,
) -> list[dict[str, float]]:
    """Returns metric -> value of every row, of which the first are done; with a checkpoint now and then.

    found: (number of a part, scores of its rows) in any order; they follow those that are done.
    """
    saved, early, number = len(done), {}, 0
    with Progress("scoring", total, len(done), "result") as progress:
        for place, scores in found:
            early[place] = scores
            while number in early:
                done += early.pop(number)
                number += 1
            if len(done) - saved >= CHECKPOINT_ROWS:
                saved = len(done)
                _write_checkpoint(checkpoint, version, done)
            progress.update(len(done) + sum(map(len, early.values())))
    return done


def _parts(folder: Path, rows: pd.DataFrame, edits: Mapping[str, Edit]) -> Iterator[Part]:
    """Yields the results in parts of `RESCORED`, with their pictures. Raises `UserError` for a picture that is not the
    one that was made."""
    for start in range(0, len(rows), RESCORED):
        asked, content = [], {}
        for row in rows.iloc[start : start + RESCORED].itertuples(index=False):
            paths = [getattr(row, column) for column in ("image", *PICTURES)]
            content |= {path: _read(folder / path) for path in paths if path not in content}
            if hashlib.sha256(content[row.image]).hexdigest() != row.image_sha256:
                raise UserError(
                    f"picture {folder / row.image} is not the one that was made",
                    remedy="run the same `riebench run` again",
                )
            asked.append((edits[row.edit], *paths))
        yield Part(tuple(asked), content)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}", remedy="check the path") from error


def _backbone(manifest: Mapping) -> Backbone:
    named = manifest["config"]["backbone"]
    return backbone_from(named, "the manifest's backbone") if isinstance(named, Mapping) else BACKBONES.get(named)


def _edits(frame: pd.DataFrame, manifest: Mapping, place: str | Path) -> dict[str, Edit]:
    """Returns the run's edits by id. Raises `UserError` where its edit set has them no longer, or never had."""
    name, ids = place or manifest["config"]["edits"], set(frame["edit"])
    known = [edit for edit in edits_of_run(manifest, place) if edit.id in ids]
    missing = sorted(ids - {edit.id for edit in known})
    if missing:
        raise UserError(
            f"the run has edits of its own: {missing[0]!r} is not in the edit set {str(name)!r}",
            remedy="score it where it is made: give `metrics` to the run",
        )
    if manifest["edits"]["sha256"] != set_sha256(known):
        raise UserError(
            f"the run was made of other edits than those of the same ids in the edit set {str(name)!r}",
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
