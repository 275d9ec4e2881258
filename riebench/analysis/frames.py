"""The schema of `scores.parquet`: one row a result, that is one (edit, seed) under one (method, strength, blocks)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd

from riebench.core.errors import UserError
from riebench.core.files import replacing

NOOP = "noop"
CASE = ["category", "edit", "seed"]
SETTING = ["method", "strength", "blocks"]


class Setting(NamedTuple):
    """What was done to a case. `blocks` is the blocks' names joined by "+" in U-Net order, "" for none."""

    method: str
    strength: float
    blocks: str


@dataclass(frozen=True)
class Score:
    """A score of the intervened image, as tables and pages speak of it."""

    name: str
    """The column."""
    label: str
    better: Literal["higher", "lower", "neither"]
    meaning: str
    always: bool = True
    """Whether every result that did not fail has this score."""
    bounds: tuple[float | None, float | None] = (None, None)
    """Least and greatest value; None for none."""
    needs: tuple[str, ...] = ()
    """What it cannot be had without: "region", "prompts", "edited image", "oracle", weights by name."""
    source: str = ""
    """The paper it comes from."""
    network: str = ""
    """Architecture and weights of the network behind it; "" for none."""
    weights_sha256: str = ""
    """The sha256 of the weights' files; "" for none."""
    preprocessing: str = ""
    """What is done to an image in [0, 1] before it is scored."""


SCORES = (
    Score("clip_text_edited", "CLIP, edited prompt", "higher", "cosine of the image with the edited prompt"),
    Score("clip_text_original", "CLIP, original prompt", "neither", "cosine of the image with the original prompt"),
    Score("clip_image_edited", "CLIP, edited image", "higher", "cosine of the image with the edited image"),
    Score("clip_image_original", "CLIP, original image", "higher", "cosine of the image with the original image"),
    Score(
        "clip_directional",
        "Directional CLIP",
        "higher",
        "cosine of the image's change from the original with the prompt's; empty where the image has not changed",
        always=False,
    ),
    Score("lpips_original", "LPIPS to original", "lower", "LPIPS-Alex distance to the original image"),
    Score("lpips_edited", "LPIPS to edited", "lower", "LPIPS-Alex distance to the edited image"),
    Score(
        "lpips_outside",
        "LPIPS outside region",
        "lower",
        "LPIPS-Alex distance to the original image outside the region; empty where the region is the whole image",
        always=False,
    ),
    Score(
        "oracle_success",
        "Oracle success",
        "higher",
        "1 where the attributes that the edit changes have the wanted value, else 0",
        always=False,
    ),
    Score(
        "oracle_preservation",
        "Oracle preservation",
        "higher",
        "share of the other attributes that read as they do in the original image",
        always=False,
    ),
)
SCORE_BY_NAME = {score.name: score for score in SCORES}

#: Where a frame keeps the `Score` of each of its score columns, as dicts; parquet files keep it with the table.
METRICS_KEY = "metrics"
#: And what it says of the set that its edits are out of: name, version, sha256.
EDITS_KEY = "edits"

#: Column -> dtype, in the order of the file. The scores come behind them.
COLUMNS: dict[str, type] = {
    "edit": str,
    "category": str,
    "seed": int,
    "backbone": str,
    "steps": int,
    "method": str,
    "strength": float,
    "blocks": str,
    "status": str,
    "reason": str,
    "image": str,
    "injected_norm": float,
    "num_features": int,
    "features": str,
    "cells_original": int,
    "cells_edited": int,
    "mode": str,
    "dtype": str,
    "branch": str,
    "window": str,
    "original": str,
    "edited": str,
    "regions": str,
    "edit_sha256": str,
}
#: The scores that every frame has: the headline of gain and of preservation.
NEEDED = ("clip_text_edited", "lpips_original")


def scores_of(frame: pd.DataFrame) -> tuple[Score, ...]:
    """Returns what the frame says of its score columns. Of a frame that says nothing, as pandas leaves them behind many
    an operation, it returns those of `SCORES` that are there. Raises `UserError` where what it says is broken.
    """
    described = frame.attrs.get(METRICS_KEY)
    if described is None:
        return tuple(score for score in SCORES if score.name in frame.columns)
    try:
        return tuple(score for score in map(score_from_words, described) if score.name in frame.columns)
    except (TypeError, KeyError) as error:
        raise UserError(
            f"what the scores say of their metrics cannot be read: {error}", remedy="score the run again"
        ) from error


def describe_scores(frame: pd.DataFrame, scores: Sequence[Score]) -> pd.DataFrame:
    """Returns the frame with what `scores_of` is to say of it."""
    described = frame.copy(deep=False)
    described.attrs = {**frame.attrs, METRICS_KEY: [score_words(score) | {"always": score.always} for score in scores]}
    return described


def score_words(score: Score) -> dict:
    """Returns the fields of a score that tell what it measures, as JSON has them: all but `always`, which is of the
    table."""
    words = json.loads(json.dumps(asdict(score)))
    del words["always"]
    return words


def score_from_words(words: dict) -> Score:
    """Returns the score that `score_words` describes. Raises `TypeError` or `KeyError` for other words."""
    return Score(**{**words, "bounds": tuple(words["bounds"]), "needs": tuple(words["needs"])})


def validate_scores(frame: pd.DataFrame, where: str = "the scores") -> pd.DataFrame:
    """Returns the frame with the schema's columns first, then its scores, in the schema's dtypes; further columns are
    kept as they are.

    Raises `UserError` for a missing column, a value of the wrong kind, an unknown status, a failure without a reason,
    a result without a score that every result has, an infinite score, and two rows for one (edit, seed, method,
    strength, blocks).
    """
    scores = scores_of(frame)
    columns = COLUMNS | dict.fromkeys((score.name for score in scores), float)
    missing = [column for column in (*COLUMNS, *NEEDED) if column not in frame.columns]
    if missing:
        raise UserError(
            f"{where}: columns missing: {', '.join(missing)}",
            remedy="score the run again, or write it with write_scores",
        )
    typed = frame.copy()
    for column, dtype in columns.items():
        if dtype is not float and frame[column].isna().any():
            raise UserError(f"{where}: column {column!r} has empty values", remedy="fill them and write it again")
        try:
            typed[column] = frame[column].astype(dtype)
        except (TypeError, ValueError) as error:
            raise UserError(
                f"{where}: column {column!r} is not {dtype.__name__}: {error}", remedy="write it with write_scores"
            ) from error
    typed = typed[[*columns, *(column for column in typed.columns if column not in columns)]]

    unknown = set(typed["status"]) - {"ok", "failed"}
    if unknown:
        raise UserError(f"{where}: unknown status {sorted(unknown)[0]!r}", remedy="use 'ok' or 'failed'")
    silent = typed[(typed["status"] == "failed") & (typed["reason"] == "")]
    if len(silent):
        raise UserError(f"{where}: {_row(silent)} failed without a reason", remedy="record the reason")
    for score in scores:
        values = typed[score.name]
        lacking = typed[(typed["status"] == "ok") & values.isna()] if score.always else typed[:0]
        if len(lacking):
            raise UserError(
                f"{where}: {_row(lacking)} is ok but lacks {score.name}", remedy="score it again or mark it failed"
            )
        infinite = typed[np.isinf(values)]
        if len(infinite):
            raise UserError(
                f"{where}: {_row(infinite)} has {score.name} {values[infinite.index[0]]}", remedy="score it again"
            )
    doubled = typed[typed.duplicated(["edit", "seed", *SETTING])]
    if len(doubled):
        raise UserError(f"{where}: two rows for {_row(doubled)}", remedy="keep one of them")
    return typed


def write_scores(frame: pd.DataFrame, path: Path) -> None:
    """Writes the validated frame as parquet, whole or not at all. Raises `UserError` as `validate_scores` does."""
    typed = validate_scores(frame)
    with replacing(Path(path)) as temporary:
        typed.to_parquet(temporary, index=False)


def read_scores(path: Path) -> pd.DataFrame:
    """Reads and validates a scores file. Raises `UserError` where it is missing, broken or not of this schema."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"scores {path} does not exist", remedy="run the benchmark, or check the run folder's path")
    try:
        frame = pd.read_parquet(path)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"scores {path} cannot be read: {error}", remedy="remove it and score the run again") from error
    return validate_scores(frame, where=f"scores {path}")


def one_of_each(frame: pd.DataFrame) -> tuple[str, int, str]:
    """Returns the frame's (backbone, steps, mode). Raises `UserError` where there are several: they are not to be
    averaged."""
    kinds = frame[["backbone", "steps", "mode"]].drop_duplicates()
    if len(kinds) != 1:
        raise UserError(
            f"the scores mix {len(kinds)} combinations of backbone, steps and mode", remedy="summarise each by itself"
        )
    backbone, steps, mode = kinds.iloc[0]
    return str(backbone), int(steps), str(mode)


def settings_of(frame: pd.DataFrame) -> list[Setting]:
    """Returns the distinct settings, in the order of their first row."""
    return [Setting(*row) for row in frame[SETTING].drop_duplicates().itertuples(index=False, name=None)]


def score_table(frame: pd.DataFrame, score: str) -> pd.DataFrame:
    """Returns one score as a table: rows (category, edit, seed), columns (method, strength, blocks)."""
    return frame.pivot(index=CASE, columns=SETTING, values=score)


def feature_counts(features: str) -> dict[str, int]:
    """Returns block -> number of selected features, as a `features` cell has it. Raises `UserError` where it is no such
    object."""
    try:
        counts = json.loads(features) if features else {}
        return {str(block): int(count) for block, count in counts.items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(
            f"features {features[:60]!r} is not a JSON object of counts", remedy="score the run again"
        ) from error


def _row(rows: pd.DataFrame) -> str:
    first = rows.iloc[0]
    return f"{first['edit']} (seed {first['seed']}) under {first['method']} x{first['strength']:g} {first['blocks']!r}"
