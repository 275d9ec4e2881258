"""From a finished run to entries of the leaderboard, one for each method and strength."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd

from baselines import METHODS
from riebench.analysis.failures import failure_sentences, failures_of, in_every_case
from riebench.analysis.frames import one_of_each, read_scores, settings_of
from riebench.analysis.run import Run
from riebench.core import files
from riebench.core.errors import UserError, did_you_mean
from riebench.core.files import file_sha256
from riebench.core.scores import CASE, SETTING, Setting, ids_digest, score_words, scores_of
from riebench.edits.edit import Edit, load_edits, set_sha256, split_of, strip_marks
from riebench.leaderboard.entries import (
    CONTROLS,
    ENTRY_FILE,
    IMAGES_FOLDER,
    SCHEMA,
    SCORES_FILE,
    schema_problems,
)
from riebench.leaderboard.figures import (
    CHOSEN,
    RESAMPLES,
    SEED,
    case_scores,
    choose_cases,
    figures_of,
    sees_edited_image,
)
from riebench.leaderboard.packing import copy_pictures, entry_rows, write_rows
from riebench.leaderboard.validate import origin_problems, rows_problems

NAME = r"[A-Za-z0-9][A-Za-z0-9._@+-]*"


@dataclass(frozen=True)
class _Source:
    """The run that entries are made of."""

    folder: Path
    manifest: Mapping
    frame: pd.DataFrame
    edits: Sequence[Edit]
    """All of the edit set that the run names."""


def submit(
    run: Path,
    out: Path,
    *,
    methods: Sequence[str] = (),
    name: str = "",
    authors: str = "",
    code: str = "",
    description: str = "",
) -> list[Path]:
    """Writes an entry for each asked method of a run, as `out/<backbone>/<entry>/`, and returns the folders.

    methods: as `sae`, or `sae@2` for one of several strengths; by default all. name: of the entry, where there is one;
    by default the method's, with its strength where the run has several. code: address of the method's code.
    description: by default what `riebench ls methods` says. An entry is written whole or not at all. Raises `UserError`
    where the run is not finished, is not of a whole edit set, lacks seeds, controls or pictures, where a method is
    unknown, and where there is such an entry already.
    """
    opened = Run.open(run)
    frame, edits = opened.scores, load_edits(opened.manifest["config"]["edits"])
    source = _Source(opened.folder, opened.manifest, frame, split_of(edits, ""))
    backbone, _, _ = one_of_each(frame)
    if problems := origin_problems(opened.manifest["config"]["edits"], backbone):
        remedy = "entries are of shipped edit sets and backbones: run one as `riebench run leaderboard` does"
        raise UserError(f"the run in {opened.folder} cannot be an entry: {'; '.join(problems)}", remedy=remedy)
    chosen = _choose(source, methods)
    if name and len(chosen) > 1:
        raise UserError(f"there is one name for {len(chosen)} entries", remedy="ask for one method, as sae@1")
    if not re.fullmatch(NAME, name or "entry"):
        raise UserError(f"{name!r} cannot be the name of a folder", remedy="use letters, digits and . _ + - @")
    targets = {setting: files.named_path(out) / backbone / (name or _entry_name(setting, frame)) for setting in chosen}
    for target in targets.values():
        if os.path.lexists(target):
            raise UserError(f"there is an entry {target} already", remedy="remove it first, or give another name")
    _refuse_failed(frame, targets)
    about = {"authors": authors, "code": code, "description": description}
    for setting, target in targets.items():
        _write(source, setting, about, target)
    return list(targets.values())


def _refuse_failed(frame: pd.DataFrame, settings: Iterable[Setting]) -> None:
    """Raises `UserError` where a method has no valid case, before any entry is written."""
    wanted = {(setting.method, setting.strength) for setting in settings}
    lost = [one for one in in_every_case(failures_of(frame)) if (one["method"], one["strength"]) in wanted]
    if lost:
        remedy = "mend that, then run again; or name the other methods with --methods"
        raise UserError(f"no entry can be made: {'; '.join(failure_sentences(lost))}", remedy=remedy)


def _choose(source: _Source, methods: Sequence[str]) -> list[Setting]:
    """Returns the settings that are to be entries: all of the run on all of its blocks, or those of the names."""
    every = "+".join(source.manifest["blocks"])
    whole = [setting for setting in settings_of(source.frame) if setting.blocks in ("", every)]
    labels = {setting: (setting.method, f"{setting.method}@{setting.strength:g}") for setting in whole}
    known = [label for _, label in labels.values()]
    for asked in methods:
        if not any(asked in names for names in labels.values()):
            raise UserError(
                f"the run has no method {asked!r} on all blocks{did_you_mean(asked, known)}",
                remedy=f"use {', '.join(known)}",
            )
    return [setting for setting in whole if not methods or set(methods) & set(labels[setting])]


def _entry_name(setting: Setting, frame: pd.DataFrame) -> str:
    plain = re.sub(r"[^A-Za-z0-9._+-]+", "-", setting.method).strip("-.+") or "entry"
    return f"{plain}@{setting.strength:g}" if _has_several(setting, frame) else plain


def _has_several(setting: Setting, frame: pd.DataFrame) -> bool:
    return frame.loc[frame["method"] == setting.method, "strength"].nunique() > 1


def _write(source: _Source, setting: Setting, about: Mapping[str, str], target: Path) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    except OSError as error:
        raise UserError(
            f"cannot write to {target.parent}: {error.strerror or error}", remedy="choose a folder you may write to"
        ) from error
    try:
        words = {**_fill(folder, source, setting), **about, "name": target.name}
        words["description"] = words["description"] or _summary(setting.method)
        problems = schema_problems(words)
        if problems:
            raise UserError(f"{target} would be no entry: {'; '.join(problems)}", remedy="mend that, then submit again")
        files.write_json(folder / ENTRY_FILE, words)
        folder.chmod(0o755)
        os.replace(folder, target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _fill(folder: Path, source: _Source, setting: Setting) -> dict:
    """Writes scores and pictures of an entry, and returns what its `entry.json` says of them and of the run.

    The figures are of the scores as they are read again. Raises `UserError` with all that keeps it from the
    leaderboard.
    """
    write_rows(entry_rows(source.frame, setting), folder / SCORES_FILE)
    rows, manifest, edits = read_scores(folder / SCORES_FILE), source.manifest, source.edits
    backbone, steps, mode = one_of_each(rows)
    problems = rows_problems(rows, setting, edits, mode)
    if manifest["edits"]["sha256"] != set_sha256(edits):
        problems.append(f"the edit set {manifest['config']['edits']!r} has changed since, or was not run whole")
    if problems:
        raise UserError(
            f"the run in {source.folder} cannot be an entry: {'; '.join(problems)}",
            remedy="run all edits with three seeds and the controls, as `riebench run leaderboard` does",
        )
    blocks, metrics = list(manifest["blocks"]), scores_of(rows)
    found = figures_of(rows, setting, blocks, RESAMPLES, SEED)
    prompts = {edit.id: (strip_marks(edit.original_prompt), strip_marks(edit.edited_prompt)) for edit in edits}
    images = [
        {
            **dict(zip(CASE, case, strict=True)),
            **dict(zip(("prompt_original", "prompt_edited"), prompts[case[1]], strict=True)),
            **copy_pictures(source.folder, source.frame, setting, case, folder / IMAGES_FOLDER),
            "scores": case_scores(rows, setting, case, [metric.name for metric in metrics]),
        }
        for case in choose_cases(rows, setting)
    ]
    method = _settings(manifest, setting)
    several = _has_several(setting, source.frame)
    own = source.frame[(source.frame[SETTING] == list(setting)).all(axis=1)]
    return {
        "schema": SCHEMA,
        "title": f"{setting.method} at strength {setting.strength:g}" if several else setting.method,
        "submitted": datetime.now(UTC).date().isoformat(),
        "backbone": backbone,
        "steps": steps,
        "mode": mode,
        "dtype": str(rows["dtype"].iloc[0]),
        "edits": {
            "name": manifest["config"]["edits"],
            "count": len(edits),
            "sha256": set_sha256(edits),
            "ids_sha256": ids_digest(edit.id for edit in edits),
        },
        "seeds": sorted(int(seed) for seed in rows["seed"].unique()),
        "blocks": blocks,
        **({"planted": dict(manifest["planted"])} if manifest.get("planted") else {}),
        "method": method,
        "sees_edited_image": sees_edited_image(method),
        "metrics": [score_words(metric) for metric in metrics],
        "controls": [control for control in CONTROLS if (rows["method"] == control).any()],
        "resamples": RESAMPLES,
        "seed": SEED,
        **found,
        "cost": found["cost"] | _cost_of_run(manifest),
        "versions": {**manifest["versions"], "python": manifest["python"]},
        "hashes": {
            "scores": file_sha256(folder / SCORES_FILE),
            "scoring": manifest["scoring"],
            "code": sorted(own["code"].unique()),
            "images": {path.name: file_sha256(path) for path in sorted((folder / IMAGES_FOLDER).iterdir())},
        },
        "chosen": CHOSEN,
        "images": images,
    }


def _settings(manifest: Mapping, setting: Setting) -> dict:
    """Returns the settings of the method. Raises `UserError` where the manifest has no such method."""
    for words in manifest["methods"]:
        if (words["name"], words["strength"]) == (setting.method, setting.strength):
            return dict(words)
    raise UserError(
        f"the manifest has no method {setting.method!r} at strength {setting.strength:g}", remedy="do the run again"
    )


def _summary(method: str) -> str:
    return METHODS.summary(method) if method in METHODS.names() else ""


def _cost_of_run(manifest: Mapping) -> dict:
    """Returns what a result of the run took on average, over all its methods; None where the command made none."""
    made = manifest["made"]
    return {
        "forwards_per_image": round(manifest["forwards"] / made, 3) if made else None,
        "seconds_per_image": round(manifest["seconds"] / made, 5) if made else None,
        "device": manifest["device"],
        "machine": manifest["machine"],
    }
