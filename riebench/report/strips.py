"""The strips of a run's cases: an index of all pictures and scores, small enough to stand in the page, that `strips.js`
draws from. Pictures stay files of the run folder.

The index is JSON. Lists are in the order of the cases, settings in that of the frame:

    scores      [{name, label, better}], `gain` and `cost`: the names of the two headline ones; `success`: of the one
                that cases are ordered by at first, where it is there, ties by gain
    categories  names; edits: [{id, category (its place), prompts: [original, edited] or []}]
    cases       {edit (its place), seed, folder, original, edited, regions}: lists; "" where there is no picture
    unchanged   the gain score of the original image
    settings    [{label, method, strength, blocks, whole, single, scores: {name: numbers}, files, failed}]; whole: on
                all blocks, single: on one of several, failed: {place of the case: place of the reason}
    reasons     of failures
    first       the place of the setting that is shown first

Numbers are little-endian float32 in base64, NaN for none, so that a browser decodes only what it shows. The picture of
a setting is folder + files.before + files.between[case] + files.after; null for none.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd
from markupsafe import Markup

from riebench.analysis.frames import settings_of
from riebench.core.scores import CASE, NOOP, SETTING, Setting
from riebench.report.rendering import ENVIRONMENT
from riebench.report.words import COST, GAIN, SUCCESS, label_of, words

PICTURES = ("original", "edited", "regions")
CONTROLS = {
    "category": "Category",
    "method": "Method",
    "strength": "Strength",
    "blocks": "Blocks",
    "by": "Ordered by",
}
ORDERS = {"best": "best first", "worst": "worst first", "random": "random", "edit": "by edit"}


def strips_section(
    summary: dict, frame: pd.DataFrame, run_folder: Path, prompts: Mapping[str, tuple[str, str]]
) -> Markup:
    """Returns controls, an empty list and the index, for `strips.js`; a sentence where the run kept no pictures."""
    index = strips_index(summary, frame, run_folder, prompts)
    return Markup(ENVIRONMENT.get_template("strips.html").render(index=index, controls=CONTROLS, orders=ORDERS))


def strips_index(
    summary: dict, frame: pd.DataFrame, run_folder: Path, prompts: Mapping[str, tuple[str, str]]
) -> dict | None:
    """Returns the index that the module describes; None where no picture of an intervention is in the folder."""
    settings = [setting for setting in settings_of(frame) if setting.method != NOOP]
    every = "+".join(summary["blocks"])
    settings.sort(key=lambda setting: setting.blocks not in ("", every))  # stable: the whole before the parts
    cases = pd.MultiIndex.from_frame(frame[CASE].drop_duplicates())
    pictures = pictures_of(frame, run_folder)
    frame = frame.assign(image=pictures["image"], case=cases.get_indexer(pd.MultiIndex.from_frame(frame[CASE])))
    by_setting = {Setting(*key): rows for key, rows in frame.groupby(SETTING, sort=False)}
    if not any(len(by_setting[setting].query("image != ''")) for setting in settings):
        return None
    own = {name: _of_cases(frame["case"], pictures[name], len(cases)) for name in PICTURES}
    folders = _folders(frame, len(cases))
    reasons = [str(reason) for reason in frame.loc[frame["status"] == "failed", "reason"].unique()]
    category, edit, seed = (cases.get_level_values(level) for level in CASE)
    categories, edits = category.unique(), edit.unique()
    category_of = dict(zip(edit, category, strict=True))
    noop = frame[frame["method"] == NOOP]
    described = [_describe(by_setting[setting], setting, summary, every, folders, reasons) for setting in settings]
    return {
        "scores": [{name: score[name] for name in ("name", "label", "better")} for score in summary["scores"]],
        "gain": GAIN,
        "cost": COST,
        "success": SUCCESS,
        "categories": [words(name) for name in categories],
        "edits": [
            {
                "id": str(name),
                "category": int(categories.get_loc(category_of[name])),
                "prompts": list(prompts.get(name, ())),
            }
            for name in edits
        ],
        "cases": {
            "edit": edits.get_indexer(edit).tolist(),
            "seed": seed.tolist(),
            "folder": folders,
            **own,
        },
        "masks": any(own["regions"]),
        "unchanged": _numbers(noop["case"], noop[GAIN], len(cases)),
        "settings": described,
        "reasons": reasons,
        "first": settings.index(_first(summary, settings, every)),
    }


def _describe(
    rows: pd.DataFrame, setting: Setting, summary: dict, every: str, folders: Sequence[str], reasons: Sequence[str]
) -> dict:
    failed = rows[rows["status"] == "failed"]
    return {
        "label": label_of(setting._asdict(), summary),
        "method": setting.method,
        "strength": f"{setting.strength:g}",
        "blocks": setting.blocks,
        "whole": setting.blocks in ("", every),
        "single": setting.blocks in summary["blocks"] and len(summary["blocks"]) > 1,
        "scores": {
            score["name"]: _numbers(rows["case"], rows[score["name"]], len(folders))
            for score in summary["scores"]
            if score["name"] in rows and rows[score["name"]].notna().any()
        },
        "files": _files(_of_cases(rows["case"], rows["image"], len(folders)), folders),
        "failed": {int(row.case): reasons.index(str(row.reason)) for row in failed.itertuples()},
    }


def _first(summary: dict, settings: Sequence[Setting], every: str) -> Setting:
    """Returns the setting of the headline's block effects, or else the first that acts on blocks, or else the first."""
    if summary["dominance"]:
        headline = summary["dominance"][0]
        wanted = Setting(headline["method"], headline["strength"], every)
        if wanted in settings:
            return wanted
    return next((setting for setting in settings if setting.blocks), settings[0])


def pictures_of(frame: pd.DataFrame, run_folder: Path) -> dict[str, pd.Series]:
    """Returns the frame's columns of picture paths, with "" where the file is missing or lies outside the folder."""
    found: dict[str, str] = {"": ""}

    def shown(name: str) -> str:
        if name not in found:
            path = PurePosixPath(name)
            inside = not path.is_absolute() and ".." not in path.parts and "\\" not in name
            found[name] = name if inside and os.path.isfile(os.path.join(run_folder, name)) else ""
        return found[name]

    return {name: frame[name].map(shown) for name in ("image", *PICTURES)}


def _folders(frame: pd.DataFrame, count: int) -> list[str]:
    """Returns the folder of each case's pictures with a slash at its end, "" where they share none."""
    of_case: list[set[str]] = [set() for _ in range(count)]
    for case, image in zip(frame["case"], frame["image"], strict=True):
        if image:
            of_case[case].add(image.rpartition("/")[0])
    return [next(iter(found)) + "/" if len(found) == 1 and found != {""} else "" for found in of_case]


def _files(images: Sequence[str], folders: Sequence[str]) -> dict:
    """Returns what the file names have in common before and after, and what differs."""
    names = [image[len(folder) :] for image, folder in zip(images, folders, strict=True)]
    there = [name for name in names if name]
    before = os.path.commonprefix(there)
    after = os.path.commonprefix([name[len(before) :][::-1] for name in there])[::-1]
    between = [name[len(before) : len(name) - len(after)] if name else None for name in names]
    return {"before": before, "after": after, "between": between}


def _of_cases(case: pd.Series, values: pd.Series, count: int) -> list[str]:
    """Returns the first text of each case that is not empty."""
    found = [""] * count
    for place, value in zip(case, values, strict=True):
        found[place] = found[place] or value
    return found


def _numbers(case: pd.Series, values: pd.Series, count: int) -> str:
    numbers = np.full(count, np.nan, dtype="<f4")
    numbers[case.to_numpy()] = values.to_numpy(dtype=float)
    return base64.b64encode(numbers.tobytes()).decode()
