"""A finished run is opened from its folder here. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image

from riebench.analysis.frames import read_scores
from riebench.analysis.manifest import read_manifest
from riebench.core.errors import UserError
from riebench.core.files import MARKER, read_json
from riebench.core.picture_files import decoded
from riebench.core.scores import SETTING

MANIFEST, SCORES, SUMMARY, REPORT = "manifest.json", "scores.parquet", "summary.json", "report.html"
FINISHED = "finished"
SHARED = ("original", "edited", "regions")  # the columns that name the pictures of a case


@dataclass(frozen=True)
class Run:
    """A finished run. What is asked of it is read from its folder when it is first asked for.

    run = Run.open("runs/quickstart")
    run.scores                                       # a pandas data frame, one row a result
    run.summary["categories"]["change_colour"]       # effects of blocks, with intervals
    run.images(("change_colour-00", 42))["sae@1"]    # a picture of a case
    """

    folder: Path
    manifest: dict[str, Any]
    """What was asked for and on what it ran (`docs/run-directory.md`)."""

    @classmethod
    def open(cls, folder: str | Path) -> Run:
        """Returns the finished run of a folder. Raises `UserError` for a folder that holds no run, and for a run
        that is not finished."""
        folder = Path(folder).expanduser()
        if not (folder / MARKER).is_file():
            raise UserError(f"{folder} is no run directory", remedy="give the folder of a finished `riebench run`")
        manifest = read_manifest(folder / MANIFEST)
        if manifest.get("status") != FINISHED:
            raise UserError(
                f"the run in {folder} is not finished ({manifest.get('status')})",
                remedy="run it to its end: the same `riebench run` goes on from there",
            )
        return cls(folder, manifest)

    @property
    def name(self) -> str:
        """Returns the name of its folder."""
        return self.folder.resolve().name

    @cached_property
    def scores(self) -> pd.DataFrame:
        """Returns the table of scores, one row a result. Raises `UserError` where its file is missing or broken."""
        return read_scores(self.folder / SCORES)

    @cached_property
    def summary(self) -> dict[str, Any]:
        """Returns the effects of blocks and the tables of methods. Raises `UserError` where its file is missing or
        broken."""
        return read_json(self.folder / SUMMARY, "the run's summary")

    @property
    def report(self) -> Path:
        """Returns the path of the page that shows all of it."""
        return self.folder / REPORT

    def images(self, case: tuple[str, int]) -> dict[str, Image.Image]:
        """Returns the pictures of a case, an edit's id with a seed: `original`, `edited`, `regions`, and each result by
        its setting, as `sae@1` or `sae@1 up.0.0+up.0.1` for some of the blocks.

        Raises `UserError` for a case that the run has not, and for a picture that is missing or broken.
        """
        edit, seed = case
        rows = self.scores[(self.scores["edit"] == edit) & (self.scores["seed"] == seed)]
        if rows.empty:
            raise UserError(f"the run {self.name} has no case {edit!r} with seed {seed}", remedy="see `Run.scores`")
        paths = {column: rows.iloc[0][column] for column in SHARED}
        every = "+".join(self.manifest["blocks"])
        for method, strength, blocks, image in rows[[*SETTING, "image"]].itertuples(index=False, name=None):
            label = f"{method}@{strength:g}"
            paths[label if blocks in ("", every) else f"{label} {blocks}"] = image
        again = "run the same `riebench run` again"
        return {label: decoded(self.folder / path, again) for label, path in paths.items() if path}
