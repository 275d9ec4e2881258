"""Is an entry true? Everything that it says of its scores is computed again from them, and compared."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeGuard

import pandas as pd

from riebench.analysis.frames import one_of_each, read_scores, settings_of
from riebench.backbones.table import BACKBONES
from riebench.core.errors import UserError, did_you_mean
from riebench.core.files import file_sha256
from riebench.core.scores import CASE, NOOP, SETTING, Score, Setting, ids_digest, score_words, scores_of
from riebench.edits.edit import Edit, load_edits, set_sha256, shipped_sets, split_of, strip_marks
from riebench.leaderboard.entries import (
    CONTROLS,
    ENTRY_FILE,
    IMAGES_FOLDER,
    SCORES_FILE,
    Entry,
    dotted,
    entry_folder,
    linked,
    read_content,
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
from riebench.leaderboard.packing import picture_problems
from riebench.methods.modes import MODES

TOLERANCE = 1e-6
MIN_SEEDS = {name: len(mode.seeds) or 3 for name, mode in MODES.items()}  # protocol section 8
MOST_SHOWN = 20  # of the figures that are not what the scores say


def validate(entry: Path) -> list[str]:
    """Returns all that is wrong with an entry, a line each; [] where it is right.

    Looked at: the schema; the names of the folders; the hashes of all files, and that there is no other; the edit set,
    complete and as it is shipped, with at least three seeds in strict mode; mode, precision, blocks, metrics and their
    bounds; the controls; every aggregate, block effect, failure, cost and example's score, which are computed again and
    may differ by 1e-6. Nothing is generated, and no pickle is read.
    """
    folder = entry_folder(entry)
    try:
        content = read_content(folder)
    except UserError as error:
        return [str(error)]
    problems = schema_problems(content)
    if problems:
        return problems
    problems = [*_place_problems(folder, content), *origin_problems(content["edits"]["name"], content["backbone"])]
    problems += [*_planted_problems(content), *_file_problems(folder, content)]
    if any((folder / name).is_symlink() for name in _files_of(folder)):
        return problems  # what else is there is not the entry's
    problems += picture_problems(folder / IMAGES_FOLDER, content["images"])
    try:
        rows = read_scores(folder / SCORES_FILE)
        edits = (
            split_of(load_edits(content["edits"]["name"]), "") if content["edits"]["name"] in shipped_sets() else None
        )
        return [*problems, *_scores_problems(Entry(folder, content), rows, edits)]
    except UserError as error:
        return [*problems, str(error)]


def rows_problems(rows: pd.DataFrame, setting: Setting, edits: Sequence[Edit], mode: str) -> list[str]:
    """Returns what the scores of an entry lack: cases of the edit set, seeds, controls; and rows that do not belong
    there."""
    seeds = sorted(int(seed) for seed in rows["seed"].unique())
    problems = []
    if mode not in MIN_SEEDS:
        problems.append(f"mode {mode!r} is not known")
    elif len(seeds) < MIN_SEEDS[mode]:
        problems.append(f"{len(seeds)} seeds, where {mode} mode asks for at least {MIN_SEEDS[mode]}")
    missing = [control for control in CONTROLS if not (rows["method"] == control).any()]
    if missing:
        problems.append(f"controls missing: {', '.join(missing)}")
    lost = [one for one in CONTROLS if one not in missing and not (rows[rows["method"] == one]["status"] == "ok").any()]
    if lost:
        problems.append(f"controls without a valid case: {', '.join(lost)}")
    whole = [one for one in settings_of(rows) if one.blocks in ("", setting.blocks)]
    if setting not in whole:
        problems.append(f"no row of {setting.method} at strength {setting.strength:g} on {setting.blocks!r}")
    strangers = {one.method for one in settings_of(rows)} - {setting.method, *CONTROLS}
    if strangers:
        problems.append(f"rows of other methods: {', '.join(sorted(strangers))}")

    known = pd.MultiIndex.from_tuples([(edit.category, edit.id, seed) for edit in edits for seed in seeds], names=CASE)
    for one, of_setting in rows.groupby(SETTING, sort=False):
        name, cases = f"{one[0]}@{one[1]:g} on {one[2] or 'no block'}", pd.MultiIndex.from_frame(of_setting[CASE])
        for lacking, words in ((known.difference(cases), "lacks {} of"), (cases.difference(known), "has {} beside")):
            if len(lacking):
                category, edit, seed = lacking[0]
                counted = words.format(len(lacking))
                problems.append(f"{name} {counted} the {len(known)} cases: {edit} ({category}) with seed {seed}")
    return problems


def origin_problems(edits: str, backbone: str) -> list[str]:
    """Returns why results of an edit set on a backbone cannot be an entry: both are to be shipped, so that anyone can
    look at them."""
    problems = []
    if backbone not in BACKBONES.names():
        problems.append(f"backbone: there is no {backbone!r}{did_you_mean(backbone, BACKBONES.names())}")
    if edits not in shipped_sets():
        problems.append(f"edits.name: {edits!r} is no shipped edit set")
    return problems


def _planted_problems(content: Mapping) -> Iterator[str]:
    """Yields where an entry names other planted blocks than riebench does; one that names none says nothing of them."""
    backbone = content["backbone"]
    if "planted" in content and backbone in BACKBONES.names():
        known = BACKBONES.get(backbone).planted_blocks(content["aggregates"]["categories"])
        known = {category: block for category, block in known.items() if block in content["blocks"]}
        yield from mismatches(content["planted"], known, ("planted",), f"{backbone} has")


def _place_problems(folder: Path, content: Mapping) -> Iterator[str]:
    place = folder.resolve()
    for what, said, found in (
        ("name", content["name"], place.name),
        ("backbone", content["backbone"], place.parent.name),
    ):
        if said != found:
            yield f"{what} is {said!r}, its folder is {found!r}"


def _file_problems(folder: Path, content: Mapping) -> Iterator[str]:
    """Yields the files that are missing, that are not what was submitted, and that no key of the entry names."""
    images = content["hashes"]["images"]
    expected = {SCORES_FILE: content["hashes"]["scores"]}
    expected |= {f"{IMAGES_FOLDER}/{name}": digest for name, digest in images.items()}
    for name, digest in expected.items():
        if linked(folder, name):
            continue
        if not (folder / name).is_file():
            yield f"{name} is missing"
        elif (found := file_sha256(folder / name)) != digest:
            yield f"{name} is not the file that was submitted: its sha256 is {found}, the entry says {digest}"
    for name in _files_of(folder):
        if (folder / name).is_symlink():
            yield f"{name} is a link, and an entry holds its files itself"
        elif name not in {ENTRY_FILE, *expected}:
            yield f"{name} does not belong to the entry"
    named = {case[kind] for case in content["images"] for kind in ("original", "edited", "regions", "intervened")}
    for name in sorted(named ^ set(images)):
        yield f"images/{name} is {'shown, but has no hash' if name in named else 'shown by no case'}"


def _files_of(folder: Path) -> list[str]:
    """Returns all files below a folder, and all links, which are not followed."""
    found = (path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    return sorted(path.relative_to(folder).as_posix() for path in found)


def _scores_problems(entry: Entry, rows: pd.DataFrame, edits: Sequence[Edit] | None) -> list[str]:
    content, setting = entry.content, entry.setting
    found = dict(zip(("backbone", "steps", "mode"), one_of_each(rows), strict=True))
    found |= {
        "dtype": ", ".join(sorted(rows["dtype"].unique())),
        "seeds": sorted(int(seed) for seed in rows["seed"].unique()),
        "metrics": [score_words(score) for score in scores_of(rows)],
        "controls": [control for control in CONTROLS if (rows["method"] == control).any()],
        "chosen": CHOSEN,
        "sees_edited_image": sees_edited_image(content["method"]),
    }
    problems = list(mismatches({key: content[key] for key in found}, found))
    method = (content["method"]["name"], content["method"]["strength"])
    if method != (setting.method, setting.strength) or setting.blocks not in ("", "+".join(content["blocks"])):
        problems.append(f"aggregates are of {setting}, the entry is of {method} on {'+'.join(content['blocks'])!r}")
    if (content["resamples"], content["seed"]) != (RESAMPLES, SEED):
        counted = f"{content['resamples']} resamples from seed {content['seed']}"
        problems.append(f"{counted}, where every entry has {RESAMPLES} from seed {SEED}")
    problems += _bounds_problems(rows, scores_of(rows))
    if edits is not None:
        set_words = {
            "name": content["edits"]["name"],
            "count": len(edits),
            "sha256": set_sha256(edits),
            "ids_sha256": ids_digest(edit.id for edit in edits),
        }
        problems += mismatches(content["edits"], set_words, ("edits",), "the shipped set says")
        problems += rows_problems(rows, setting, edits, content["mode"])
    if setting not in settings_of(rows) or not (rows["method"] == NOOP).any():
        return problems  # there is nothing to compute again
    figures = figures_of(rows, setting, content["blocks"], RESAMPLES, SEED)
    said = {key: content[key] for key in figures} | {"cost": {key: content["cost"][key] for key in figures["cost"]}}
    wrong = list(mismatches(said, figures))
    wrong += mismatches(content["images"], _examples(content, rows, setting, edits), ("images",))
    rest = [f"and {len(wrong) - MOST_SHOWN} further figures"] if len(wrong) > MOST_SHOWN else []
    return [*problems, *wrong[:MOST_SHOWN], *rest]


def _examples(content: Mapping, rows: pd.DataFrame, setting: Setting, edits: Sequence[Edit] | None) -> list[dict]:
    """Returns what `images` must say, but for the names of the files, which are taken as they are."""
    prompts = {edit.id: (edit.original_prompt, edit.edited_prompt) for edit in edits or ()}
    names = [score.name for score in scores_of(rows)]
    found = []
    for i, case in enumerate(choose_cases(rows, setting)):
        said = content["images"][i] if i < len(content["images"]) else {}
        words = dict(said) | dict(zip(CASE, case, strict=True)) | {"scores": case_scores(rows, setting, case, names)}
        if case[1] in prompts:
            words |= dict(zip(("prompt_original", "prompt_edited"), map(strip_marks, prompts[case[1]]), strict=True))
        found.append(words)
    return found


def _bounds_problems(rows: pd.DataFrame, scores: Sequence[Score]) -> Iterator[str]:
    for score in scores:
        low, high = score.bounds
        outside = rows[
            (rows[score.name] < (-float("inf") if low is None else low - TOLERANCE))
            | (rows[score.name] > (float("inf") if high is None else high + TOLERANCE))
        ]
        if len(outside):
            first = outside.iloc[0]
            yield (
                f"{score.name} of {first['edit']} (seed {first['seed']}) under {first['method']} is "
                f"{first[score.name]:g}, outside its bounds {low} to {high}"
            )


def mismatches(
    said: object, found: object, path: tuple[str | int, ...] = (), by: str = "the scores say"
) -> Iterator[str]:
    """Yields where two JSON values differ, numbers by more than `TOLERANCE` of the larger of 1 and what was found."""
    where = dotted(path)
    if isinstance(said, Mapping) and isinstance(found, Mapping):
        for key in sorted({*said, *found}):
            if key not in found:
                yield f"{dotted((*path, key))} is {_shown(said[key])}, {by} nothing of it"
            elif key not in said:
                yield f"{dotted((*path, key))} is missing, {by} {_shown(found[key])}"
            else:
                yield from mismatches(said[key], found[key], (*path, key), by)
    elif isinstance(said, list) and isinstance(found, list) and len(said) == len(found):
        for i, pair in enumerate(zip(said, found, strict=True)):
            yield from mismatches(*pair, (*path, i), by)
    elif _is_number(said) and _is_number(found):
        if abs(said - found) > TOLERANCE * max(1.0, abs(found)):
            yield f"{where} is {said:.7g}, {by} {found:.7g}"
    elif said != found:
        yield f"{where} is {_shown(said)}, {by} {_shown(found)}"


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _shown(value: object) -> str:
    words = repr(value)
    return words if len(words) <= 80 else f"{words[:77]}..."
