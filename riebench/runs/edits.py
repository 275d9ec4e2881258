"""The edits of a run: what its backbone asks of them beside `riebench.edits.checks`, and which of them are run.

`riebench run` and `riebench validate` look at edits by the same functions. Imports no torch.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from PIL import Image

from riebench.backbones.folders import backbone_folder, outline_of
from riebench.backbones.table import BACKBONES, Backbone
from riebench.core.errors import UserError, did_you_mean
from riebench.edits.checks import REGIONS, Suits
from riebench.edits.edit import Edit, Placed, categories_of, split_of, strip_marks
from riebench.edits.files import Problem
from riebench.edits.phrases import Phrase, parse_phrase
from riebench.runs.config import RunConfig
from riebench.tinyworld.captions import parse
from riebench.tinyworld.nouns import phrase_noun

TINYWORLD = "tinyworld"  # the judges, and the grounder, that know its closed grammar alone
#: Kind of a backbone (`Backbone.judges`) -> the one that edits are looked at for where none is named.
USUAL = {TINYWORLD: "tinyworld-turbo@1", "sdxl": "sdxl-turbo@1"}
TOKENS = 77  # that CLIP's text encoders read, the two around the prompt among them
#: What CLIP's tokenizers cut a text into before anything else; no piece is less than a token.
_PIECES = re.compile(r"'s|'t|'re|'ve|'m|'ll|'d|[^\W\d_]+|\d|(?:[^\w\s]|_)+")

#: Prompt -> what the text encoders of a backbone read of it.
Read = Callable[[str], object]


def suits(
    backbone: Backbone,
    dtype: str = "float32",
    read_phrase: Callable[[str], Phrase] = parse_phrase,
    *,
    size: tuple[int, int] | None = None,
) -> Suits:
    """Returns what yields the problems that a backbone has with an edit: words outside its grammar, nouns that its
    grounder does not know, masks of another size than its pictures, and prompts that are the same to its text encoders.

    dtype: of the files that are read where they are here; without them prompts are compared by what any tokenizer of
    CLIP would find the same. read_phrase: of the mode (`Mode.read_phrase`). size: of the pictures (high, wide), (0, 0)
    where it is not to be looked at; None takes the backbone's.
    """
    high_wide = _size(backbone, dtype) if size is None else size
    read = _read_words if backbone.judges == TINYWORLD else _read_tokens(backbone, dtype) or _read_words
    checks = (
        partial(_grammar, backbone),
        partial(_nouns, backbone, read_phrase),
        partial(_masks, backbone, high_wide, read_phrase),
        partial(_prompts, backbone, read),
    )
    return lambda placed: (problem for check in checks for problem in check(placed))


def usual_suits(edits: Sequence[Edit]) -> tuple[Backbone, Suits]:
    """Returns the backbone that edits are looked at for where none is named, and its `suits`: tinyworld where any
    prompt is of its grammar, else SDXL Turbo, whose masks may have any size."""
    of_world = any(not _fault(prompt) for edit in edits for prompt in (edit.original_prompt, edit.edited_prompt))
    backbone = BACKBONES.get(USUAL[TINYWORLD if of_world else "sdxl"])
    return backbone, suits(backbone, size=None if of_world else (0, 0))


def choose_edits(edits: list[Edit], config: RunConfig) -> list[Edit]:
    """Returns the first `edits_per_category` edits of each asked category in the asked split.

    Raises `UserError` where there is no such category or split, and where no edit is left.
    """
    known = categories_of(edits)
    for name in config.categories:
        if name not in known:
            raise UserError(
                f"the edit set has no category {name!r}{did_you_mean(name, known)}", remedy=f"use {', '.join(known)}"
            )
    of_split = split_of(edits, config.split)
    chosen = [
        edit
        for category in categories_of(of_split)
        if category in (config.categories or known)
        for edit in [edit for edit in of_split if edit.category == category][: config.edits_per_category or None]
    ]
    if not chosen:
        raise UserError("there is no edit to run", remedy="ask for another split or other categories")
    return chosen


def describe_choice(edits: Sequence[Edit], chosen: Sequence[Edit], config: RunConfig, *, own: bool = True) -> str:
    """Returns a sentence on how many edits are left out, and why; "" where all are run. own: whether they are one's
    own; of a shipped set, it is "" too where no split leaves any out, since how many to run is then what was asked."""
    of_split = split_of(edits, config.split)
    if len(chosen) == len(edits) or not (own or len(of_split) < len(edits)):
        return ""
    of_category = [edit for edit in of_split if edit.category in (config.categories or categories_of(edits))]
    parts = []
    if len(of_split) < len(edits):
        kept = {edit.id for edit in of_split}
        others = describe_splits([edit for edit in edits if edit.id not in kept])
        split = of_split[0].tags["split"]
        parts.append(
            f"{len(edits) - len(of_split)} that are not of the split {split} ({others}; --split all runs them)"
        )
    if len(of_category) < len(of_split):
        parts.append(f"{len(of_split) - len(of_category)} of categories that were not asked for")
    if len(chosen) < len(of_category):
        most = f"{len(of_category) - len(chosen)} beyond {config.edits_per_category} a category"
        parts.append(f"{most} (--edits-per-category 0 runs all)")
    return f"{len(chosen)} of {len(edits)} edits are run; left out: {', '.join(parts)}"


def describe_splits(edits: Sequence[Edit]) -> str:
    """Returns the splits that edits are of, with how many, as "dev 20, test 40"."""
    counts = Counter(edit.tags.get("split", "without a split") for edit in edits)
    return ", ".join(f"{split} {count}" for split, count in counts.items())


def _size(backbone: Backbone, dtype: str) -> tuple[int, int]:
    """Returns the size of a backbone's pictures, (0, 0) where neither it nor a file here tells."""
    if backbone.height and backbone.width:
        return backbone.height, backbone.width
    try:
        return outline_of(backbone, dtype).size
    except UserError:  # which loading it says again
        return 0, 0


def _fault(prompt: str) -> UserError | None:
    """Returns what is wrong with a prompt in tinyworld's grammar."""
    try:
        parse(strip_marks(prompt))
    except UserError as error:
        return error
    return None


def _problem(one: Placed, field: str, what: str, remedy: str) -> Problem:
    return Problem(what, remedy, one.file, one.line, one.edit.id, field, getattr(one.edit, field))


def _grammar(backbone: Backbone, one: Placed) -> Iterator[Problem]:
    if backbone.judges == TINYWORLD:
        for field in ("original_prompt", "edited_prompt"):
            if error := _fault(getattr(one.edit, field)):
                yield _problem(one, field, f"{field}: {error.message}", error.remedy.partition(";")[0])


def _phrases(one: Placed, read_phrase: Callable[[str], Phrase]) -> Iterator[tuple[str, Phrase]]:
    """Yields the fields of regions with their phrases, without those that `check_edits` finds at fault."""
    for field in REGIONS:
        try:
            yield field, read_phrase(getattr(one.edit, field))
        except UserError:
            continue


def _nouns(backbone: Backbone, read_phrase: Callable[[str], Phrase], one: Placed) -> Iterator[Problem]:
    if backbone.grounder == TINYWORLD:
        for field, phrase in _phrases(one, read_phrase):
            for noun in phrase.nouns:
                try:
                    phrase_noun(noun)
                except UserError as error:
                    yield _problem(one, field, f"{field}: {error.message}", error.remedy)


def _masks(
    backbone: Backbone, size: tuple[int, int], read_phrase: Callable[[str], Phrase], one: Placed
) -> Iterator[Problem]:
    for field, phrase in _phrases(one, read_phrase):
        if phrase.file is None or not all(size):
            continue
        try:
            with Image.open(phrase.file) as mask:
                wide, high = mask.size
        except (OSError, SyntaxError, ValueError):  # which `check_edits` tells of
            continue
        if (high, wide) != size:
            said = (
                f"the mask {phrase.file} has {wide} x {high} px, pictures of {backbone.name} {size[1]} x {size[0]} px"
            )
            yield _problem(one, field, f"{field}: {said}", "give a mask of the picture's size")


def _prompts(backbone: Backbone, read: Read, one: Placed) -> Iterator[Problem]:
    original, edited = strip_marks(one.edit.original_prompt), strip_marks(one.edit.edited_prompt)
    if original == edited or read(original) != read(edited):
        return
    if original.casefold() == edited.casefold():
        how, remedy = "differ in capitals alone", "change a word"
    else:
        how, remedy = "differ only where they are cut off", "write what differs first, or shorten both"
    said = f"original_prompt and edited_prompt {how}: to the text encoders of {backbone.name} both are the same"
    yield _problem(one, "edited_prompt", said, remedy)


def _read_words(prompt: str) -> tuple[str, ...]:
    """Returns the pieces that CLIP's text encoders may read at most. Where those of two prompts are the same, so are
    their tokens; the reverse need not be."""
    return tuple(_PIECES.findall(unicodedata.normalize("NFC", prompt).lower())[: TOKENS - 2])


def _read_tokens(backbone: Backbone, dtype: str) -> Read | None:
    """Returns what a backbone's own tokenizers read; None where its files are not here."""
    try:
        folder = backbone_folder(backbone, dtype)
        parts = json.loads((folder / "model_index.json").read_text())
        import transformers

        kinds = {name: getattr(transformers, parts[name][1]) for name in backbone.family.tokenizers}
        tokenizers = [kind.from_pretrained(folder / name, local_files_only=True) for name, kind in kinds.items()]
    except (UserError, OSError, ValueError, KeyError, TypeError, AttributeError):  # which loading it says again
        return None
    how = {"truncation": True, "padding": "max_length"}  # as pipelines do
    return lambda prompt: [one(prompt, max_length=one.model_max_length, **how).input_ids for one in tokenizers]
