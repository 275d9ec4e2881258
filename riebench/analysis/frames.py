"""Tables of scores are read, checked and written here; one row a result, that is one (edit, seed) under one setting."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from riebench.core.csv_tables import inert
from riebench.core.errors import UserError
from riebench.core.files import replacing, write_text
from riebench.core.scores import CASE, COLUMNS, NEEDED, SETTING, Setting, keep_description, scores_of
from riebench.core.text import one_line


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
    bare = frame.copy(deep=False)
    bare.attrs = {}  # pandas makes a deep copy of them at every step
    checked = {}
    for column, dtype in columns.items():
        if dtype is not float and bare[column].isna().any():
            raise UserError(f"{where}: column {column!r} has empty values", remedy="fill them and write it again")
        try:
            checked[column] = bare[column].astype(dtype)
        except (TypeError, ValueError) as error:
            raise UserError(
                f"{where}: column {column!r} is not {dtype.__name__}: {error}", remedy="write it with write_scores"
            ) from error
    others = {column: bare[column] for column in bare.columns if column not in columns}
    typed = pd.DataFrame(checked | others, index=bare.index)

    unknown = set(typed["status"]) - {"ok", "failed"}
    if unknown:
        raise UserError(f"{where}: unknown status {sorted(unknown)[0]!r}", remedy="use 'ok' or 'failed'")
    silent = typed[(typed["status"] == "failed") & (typed["reason"] == "")]
    if len(silent):
        raise UserError(f"{where}: {_row(silent)} failed without a reason", remedy="record the reason")
    for score in scores:
        values = typed[score.name]
        lacking = (typed["status"] == "ok") & values.isna()
        if score.always and lacking.any():
            said = f"{_row(typed[lacking])} is ok but lacks {score.name}"
            raise UserError(f"{where}: {said}", remedy="score it again or mark it failed")
        infinite = np.isinf(values)
        if infinite.any():
            said = f"{_row(typed[infinite])} has {score.name} {values[infinite].iloc[0]}"
            raise UserError(f"{where}: {said}", remedy="score it again")
    doubled = typed[typed.duplicated(["edit", "seed", *SETTING])]
    if len(doubled):
        raise UserError(f"{where}: two rows for {_row(doubled)}", remedy="keep one of them")
    typed.attrs = frame.attrs
    return typed


def write_csv(frame: pd.DataFrame, path: Path) -> None:
    """Writes a table as CSV, a row a line, whole or not at all; no text in it begins a formula
    (`riebench.core.csv_tables.inert`)."""
    plain = frame.rename(columns=_inert)
    plain = plain.apply(lambda column: column if pd.api.types.is_numeric_dtype(column) else column.map(_inert))
    write_text(Path(path), plain.to_csv(index=False, lineterminator="\n"))


def _inert(value: object) -> object:
    return inert(one_line(value)) if isinstance(value, str) else value


def write_scores(frame: pd.DataFrame, path: Path) -> None:
    """Writes the validated frame as parquet, whole or not at all. Raises `UserError` as `validate_scores` does."""
    typed = validate_scores(frame)
    with replacing(Path(path)) as temporary:
        typed.to_parquet(temporary, index=False)


def read_scores(path: Path) -> pd.DataFrame:
    """Returns the frame of a scores file. Raises `UserError` where it is missing, broken or not of this schema."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"scores {path} does not exist", remedy="run the benchmark, or check the run folder's path")
    try:
        frame = keep_description(pd.read_parquet(path))
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


def score_tables(frame: pd.DataFrame, scores: Iterable[str]) -> dict[str, pd.DataFrame]:
    """Returns each score as a table: rows (category, edit, seed), columns (method, strength, blocks), the same of all.
    NaN where the frame has no such row."""
    places = frame[[*CASE, *SETTING]].assign(place=np.arange(len(frame)))
    places = places.pivot(index=CASE, columns=SETTING, values="place").fillna(-1).astype(int)
    values = {score: np.append(frame[score].to_numpy(dtype=float), np.nan)[places.to_numpy()] for score in scores}
    return {score: pd.DataFrame(of_score, places.index, places.columns) for score, of_score in values.items()}


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
