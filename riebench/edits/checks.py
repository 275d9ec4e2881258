"""Any set of edits is checked here, and all its problems are told at once; `rules` is stricter."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from riebench.core.errors import UserError
from riebench.core.pictures import mask_pixels
from riebench.edits.edit import (
    SPLITS,
    Edit,
    Placed,
    by_category,
    edit_sha256,
    mask_of,
    path_of,
    read_placed,
    repeated_ids,
    set_sha256,
    strip_marks,
)
from riebench.edits.files import Problem, error_of
from riebench.edits.phrases import parse_phrase
from riebench.edits.rules import check_rules
from riebench.edits.sets import SET_FILE, read_set_file

REGIONS = ("original_region", "edited_region")
#: What a backbone cannot do of an edit (`riebench.runs.edits.suits`).
Suits = Callable[[Placed], Iterator[Problem]]


def no_backbone(_placed: Placed) -> Iterator[Problem]:
    """Yields nothing: the edits are looked at without a backbone."""
    yield from ()


def check_edits(edits: Sequence[Edit], *, strict: bool = False, suits: Suits = no_backbone) -> list[Problem]:
    """Returns what is wrong with edits, in their order; [] where nothing is.

    Looked at: ids, whether prompts differ (without marks), region phrases, mask files, splits, and whether an edit
    stands twice. strict: also the rules of the shipped set (`rules.check_rules`), its vocabulary apart. suits: also
    what a backbone asks of each.
    """
    return check_placed([Placed(edit, "", 0) for edit in edits], strict=strict, suits=suits)


def checked_edits(name: str | Path, suits: Suits = no_backbone) -> list[Edit]:
    """Returns the edits of a shipped set or a path, in the order of the categories. Raises one `UserError` for all that
    `validate_edits` finds in them."""
    path = path_of(name)
    placed, problems = read_placed(path)
    problems = problems_of(path, placed, problems, suits)
    if problems:
        raise error_of(path, problems)
    return by_category(placed)


def validate_edits(name: str | Path, suits: Suits = no_backbone) -> list[Problem]:
    """Returns what is wrong with the edits of a shipped set or a path: what cannot be read, then what `check_edits`
    finds.

    A `set.json` beside them says whether the strict rules hold, and its sha256 has to be theirs. Raises `UserError`
    where there are no edits to look at.
    """
    path = path_of(name)
    return problems_of(path, *read_placed(path), suits)


def problems_of(path: Path, placed: Sequence[Placed], problems: Sequence[Problem], suits: Suits) -> list[Problem]:
    """Returns what `validate_edits` does of edits that were read at a path. problems: of reading them."""
    problems = list(problems)
    if not placed and not problems:
        raise UserError(f"{path} holds no edits", remedy="write one, or `riebench new-edits FILE` for an example")
    try:
        said = read_set_file(path)
    except UserError as error:
        return [*problems, *check_placed(placed, suits=suits), Problem(str(error), "mend it", str(path / SET_FILE))]
    problems += check_placed(placed, strict=said.get("checked") == "riebench", folder=path, suits=suits)
    found = set_sha256([one.edit for one in placed])
    if said and said["sha256"] != found and not problems:
        wrong = f"sha256 {said['sha256']!r} is not that of the edits"
        remedy = f'write "sha256": "{found}" and another version'
        problems.append(Problem(wrong, remedy, str(path / SET_FILE), field="sha256", value=said["sha256"]))
    return problems


def check_placed(
    placed: Sequence[Placed], *, strict: bool = False, folder: Path | None = None, suits: Suits = no_backbone
) -> list[Problem]:
    """Returns `check_edits` of edits with their places. folder: of the set, where its vocabulary counts too."""
    problems = [problem for one in placed for check in (_of_one, suits) for problem in check(one)]
    problems += repeated_ids(placed)
    problems += _twice(placed)
    if strict:
        problems += check_rules(placed, folder)
    return sorted(problems, key=lambda problem: (problem.file, problem.line))


def _of_one(one: Placed) -> Iterator[Problem]:
    edit = one.edit
    problem = partial(Problem, file=one.file, line=one.line, id=edit.id)
    if strip_marks(edit.original_prompt) == strip_marks(edit.edited_prompt):
        said = f"original_prompt and edited_prompt are both {edit.edited_prompt!r}"
        yield problem(said, "change one", field="edited_prompt", value=edit.edited_prompt)
    for name in REGIONS:
        phrase = getattr(edit, name)
        try:
            parsed = parse_phrase(phrase)
        except UserError as error:
            said, _, remedy = str(error).partition(" -> ")
            yield problem(f"{name}: {said}", remedy, field=name, value=phrase)
            continue
        mask = mask_of(phrase)
        if mask is not None:
            try:
                mask_pixels(mask)
            except UserError as error:
                yield problem(f"{name} {phrase!r}: {error.message}", error.remedy, field=name, value=phrase)
        elif not parsed.nouns and parsed.complement:
            remedy = "name what to look for, or `everything`"
            yield problem(f"{name} {phrase!r} is nowhere", remedy, field=name, value=phrase)
    split = edit.tags.get("split")
    if split is not None and split not in SPLITS:
        said = f"the tag split {split!r} is none, and runs of {' or of '.join(SPLITS)} leave this edit out"
        yield problem(said, f"write {' or '.join(SPLITS)}, or leave it out", field="tags.split", value=split)


def _twice(placed: Sequence[Placed]) -> Iterator[Problem]:
    seen: dict[str, Placed] = {}
    for one in placed:
        edit = one.edit
        original, edited = (strip_marks(prompt).casefold() for prompt in (edit.original_prompt, edit.edited_prompt))
        alike = edit_sha256(replace(edit, original_prompt=original, edited_prompt=edited))
        first = seen.setdefault(alike, one)
        if first is not one and first.edit.id != edit.id:
            said = f"the same edit as {first.edit.id!r}, original_prompt {edit.original_prompt!r}"
            yield Problem(said, "remove one", one.file, one.line, edit.id, "original_prompt", edit.original_prompt)
