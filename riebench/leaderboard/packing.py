"""What an entry carries of its run: the rows of the scores that count, small, and a few pictures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pandas as pd

from riebench.analysis.frames import validate_scores
from riebench.core.errors import UserError
from riebench.core.files import replacing, write_bytes
from riebench.core.picture_files import decoded
from riebench.core.scores import CASE, COLUMNS, SETTING, Setting, describe_scores, scores_of
from riebench.leaderboard.entries import CONTROLS

LARGEST_SIDE = 256  # pixels; larger pictures are made smaller, so that entries can be kept beside the code
FORMATS = {".png": "PNG", ".jpg": "JPEG"}  # of the pictures of an entry
PATHS = ("image", "original", "edited", "regions")  # columns that name pictures of the run's folder


def entry_rows(frame: pd.DataFrame, setting: Setting) -> pd.DataFrame:
    """Returns the rows that an entry keeps: of the method at its strength on whatever blocks, of no intervention, and
    of each control at the strength nearest to the method's. Sorted, without paths and keys, scores in float32."""
    kept = (frame["method"] == setting.method) & (frame["strength"] == setting.strength)
    for control in CONTROLS:
        of_control = frame["method"] == control
        strengths = frame.loc[of_control, "strength"].unique()
        nearest = min(strengths, key=lambda strength: (abs(strength - setting.strength), strength), default=None)
        kept |= of_control & (frame["strength"] == nearest)
    scores = scores_of(frame)
    names = [score.name for score in scores]
    rows = frame.loc[kept, [*COLUMNS, *names]].sort_values([*CASE, *SETTING], ignore_index=True)
    rows = rows.assign(**dict.fromkeys(PATHS, "")).astype(dict.fromkeys((*names, "injected_norm"), "float32"))
    return describe_scores(rows, scores)


def write_rows(rows: pd.DataFrame, path: Path) -> None:
    """Writes `entry_rows` as parquet. The bytes of floats are split by their place, which zstd makes a third smaller.

    Raises `UserError` as `validate_scores` does, and where the file cannot be written.
    """
    validate_scores(rows)
    floats = [column for column in rows if rows[column].dtype == "float32"]
    with replacing(path) as temporary:
        rows.to_parquet(
            temporary,
            index=False,
            compression="zstd",
            use_dictionary=[column for column in rows if column not in floats],
            use_byte_stream_split=floats,
        )


def copy_pictures(
    run: Path, frame: pd.DataFrame, setting: Setting, case: tuple[str, str, int], folder: Path
) -> dict[str, str]:
    """Copies the four pictures of a case into a folder: kind ("original", "edited", "regions", "intervened") -> name.

    Small ones are copied as they are, larger ones as JPEG of at most `LARGEST_SIDE` pixels. Raises `UserError` where
    one is missing or cannot be read.
    """
    own = frame[(frame[[*CASE, *SETTING]] == [*case, *setting]).all(axis=1)].iloc[0]
    sources = {"intervened": own["image"], **{kind: own[kind] for kind in ("original", "edited", "regions")}}
    names = {}
    for kind, source in sources.items():
        if not source:
            raise UserError(
                f"the run in {run} does not name the {kind} picture of {case[1]} with seed {case[2]}",
                remedy="run it again",
            )
        names[kind] = _copy(run / source, folder, f"{case[0]}-{kind}")
    return names


def _copy(source: Path, folder: Path, stem: str) -> str:
    image = decoded(source, "do the run again into its folder")
    if max(image.size) <= LARGEST_SIDE and image.format == "PNG":
        name = f"{stem}.png"
        write_bytes(folder / name, source.read_bytes())
        return name
    image.thumbnail((LARGEST_SIDE, LARGEST_SIDE))
    name = f"{stem}.jpg"
    with replacing(folder / name) as temporary:
        image.convert("RGB").save(temporary, quality=85, optimize=True)
    return name


def picture_problems(folder: Path, cases: Sequence[Mapping[str, str]]) -> Iterator[str]:
    """Yields what is wrong with the pictures of an entry: a file that is no whole picture of the kind that its name
    says, of at most `LARGEST_SIDE` pixels a side, and a case whose four are not of one size."""
    for case in cases:
        sizes = {}
        for kind in ("original", "edited", "regions", "intervened"):
            name = case[kind]
            if not (folder / name).is_file():
                continue  # which is said where files are looked at
            wanted = FORMATS[Path(name).suffix]
            try:
                sizes[name] = decoded(folder / name, "submit the run again", formats=[wanted], side=LARGEST_SIDE).size
            except UserError as error:
                yield str(error)
        if len(set(sizes.values())) > 1:
            yield f"the pictures of {case['edit']} are of several sizes: " + ", ".join(
                f"{name} {width} x {height}" for name, (width, height) in sizes.items()
            )
