"""The rules of the shipped edit set `riebench` (data/edits/README.md) are checked here.

One of them is that no two edits are alike: by the words that prompts share, and by the letters, which also see other
forms of a word.
"""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from scipy import sparse

from riebench.core.text import read_lines
from riebench.edits.edit import CATEGORY_NAMES, SPLITS, Edit, Placed
from riebench.edits.files import Problem

PER_CATEGORY = 60
PER_SPLIT = {"dev": 20, "test": 40}
SUBJECTS = ("animal", "person", "indoor", "outdoor", "object", "food", "vehicle", "landscape")
LOOKS = ("photo", "painting", "drawing", "render")
PROMPT_WORDS, INSTRUCTION_WORDS, REGION_WORDS = (5, 20), (3, 12), (1, 3)
BALANCE = 0.2  # how far a count may be from an even share
JACCARD = 0.5
COSINE = 0.7  # both limits are set by eye on the shipped set: data/edits/README.md
WORDS_FILE = "words.txt"
PROMPTS = ("original_prompt", "edited_prompt")
_CHARACTERS = re.compile(r"[a-z0-9éèç' ,-]*")
_STOP = """
    a an the of in on at with and or by to from its his her their it that is are as for over under into onto inside
    beside behind across through near below above against among between around off out up down
"""
_LOOK = """
    photo photograph close-up wide film macro overhead painting oil watercolour gouache acrylic drawing pencil sketch
    ink crayon charcoal coloured felt-tip marker pastel 3d render low-poly clay glossy isometric studio stylised
    colourful illustration
"""
STOP_WORDS = frozenset(_STOP.split())
#: How a picture was made, in words that many prompts share and that say nothing of what it shows.
LOOK_WORDS = frozenset(_LOOK.split())
NGRAMS = (3, 4, 5)


def check_rules(placed: Sequence[Placed], folder: Path | None = None) -> list[Problem]:
    """Returns what breaks the rules of the shipped set, a problem for each edit and rule, then those of the whole set.

    folder: where the set's vocabulary `words.txt` lies, which every word of its prompts has to be in.
    """
    problems = [problem for one in placed for rule in _RULES for problem in rule(one)]
    problems += _near_duplicates(placed)
    problems += _balance(placed)
    if folder is not None:
        problems += _vocabulary(placed, Path(folder) / WORDS_FILE)
    return problems


def words_of(edits: Sequence[Edit]) -> list[str]:
    """Returns the vocabulary of prompts and instructions, sorted: without single letters, digits and the 's of a
    genitive."""
    texts = (text for edit in edits for text in (edit.original_prompt, edit.edited_prompt, edit.instruction))
    return sorted({word for text in texts for word in _words(text)})


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W\d_]{2,}", text.lower().replace("'s", ""))


def _problem(one: Placed, name: str, what: str, remedy: str, value: str | None = None) -> Problem:
    """Returns a problem of a field. name: of the field; its value is shown before `what`."""
    value = str(getattr(one.edit, name)) if value is None else value
    return Problem(f"{name} {value!r} {what}", remedy, one.file, one.line, one.edit.id, name, value)


def _form(one: Placed) -> Iterator[Problem]:
    if not re.fullmatch(rf"{one.edit.category}-\d\d\d", one.edit.id):
        yield _problem(one, "id", "is not its category and a number", f"write {one.edit.category}-000")
    for names, (least, most) in (
        (PROMPTS, PROMPT_WORDS),
        (("instruction",), INSTRUCTION_WORDS),
        (("original_region", "edited_region"), REGION_WORDS),
    ):
        for name in names:
            text = getattr(one.edit, name)
            count = len(text.split())
            if not least <= count <= most:
                yield _problem(one, name, f"has {count} words", f"write {least} to {most}")
            if text != " ".join(text.split()) or not _CHARACTERS.fullmatch(text):
                remedy = "use lower case, single spaces, commas and hyphens, and no full stop"
                yield _problem(one, name, "is not plain lower case", remedy)


def _one_change(one: Placed) -> Iterator[Problem]:
    """Yields a problem unless the words that differ are one run, those of the tags `from` and `to`, none too many."""
    before, after = (getattr(one.edit, name).split() for name in PROMPTS)
    old, new = (one.edit.tags.get(name, "").split() for name in ("from", "to"))
    starts = range(len(before) - len(old) + 1)
    if not any(before[:i] + new + before[i + len(old) :] == after and before[i : i + len(old)] == old for i in starts):
        said = f"is not original_prompt with {' '.join(new)!r} for {' '.join(old)!r}"
        yield _problem(one, "edited_prompt", said, "change one run of words, and write it in the tags from and to")
    elif old and new and (old[0] == new[0] or old[-1] == new[-1]):
        said, remedy = "share a first or last word", "leave the shared word out of both"
        yield _problem(one, "tags", f"from and to {said}", remedy, f"{' '.join(old)} -> {' '.join(new)}")


def _regions(one: Placed) -> Iterator[Problem]:
    edit = one.edit
    fixed = {"change_background": "background", "change_style": "everything"}.get(edit.category)
    for side in ("original", "edited"):
        name, region = f"{side}_region", getattr(edit, f"{side}_region")
        if fixed:
            if region != fixed:
                yield _problem(one, name, f"is not {fixed!r}", f"write {fixed}: {edit.category} has no other region")
            continue
        shown = {"add_object": "edited", "delete_object": "original"}.get(edit.category)
        if not _occurs(region, getattr(edit, f"{shown or side}_prompt")):
            yield _problem(one, name, f"does not stand in {shown or side}_prompt", "name it as the prompt does")
        other = {"edited": "original", "original": "edited"}.get(shown or "")
        if other and _occurs(region, getattr(edit, f"{other}_prompt")):
            yield _problem(one, name, f"stands in {other}_prompt too", "name only what comes or goes")
    same = edit.original_region == edit.edited_region
    if same == (edit.category == "change_object") and edit.category != "change_content":
        what = "is the same as edited_region" if same else f"is not edited_region, {edit.edited_region!r}"
        yield _problem(one, "original_region", what, "name what each image shows")
    if edit.category in ("add_object", "delete_object") and edit.tags.get("from" if shown == "edited" else "to"):
        yield _problem(one, "edited_prompt", "does more than to add or to delete words", "insert or delete alone")


def _occurs(phrase: str, prompt: str) -> bool:
    return re.search(rf"\b{re.escape(phrase)}\b", prompt) is not None


def _tags(one: Placed) -> Iterator[Problem]:
    for name, known in (("subject", SUBJECTS), ("look", LOOKS), ("split", SPLITS)):
        value = one.edit.tags.get(name, "")
        if value not in known:
            said = f"the tag {name} {value!r} is none"
            remedy = f"write {', '.join(known)}"
            yield Problem(said, remedy, one.file, one.line, one.edit.id, f"tags.{name}", value)


_RULES: tuple[Callable[[Placed], Iterator[Problem]], ...] = (_form, _one_change, _regions, _tags)


def _near_duplicates(placed: Sequence[Placed]) -> Iterator[Problem]:
    """Yields a problem for each two edits of which any two prompts are alike, within and across categories."""
    prompts = [getattr(one.edit, name) for name in PROMPTS for one in placed]
    for alike, limit, how in ((jaccard, JACCARD, "words"), (ngram_cosine, COSINE, "letters")):
        found = alike(prompts).reshape(2, len(placed), 2, len(placed)).max(axis=(0, 2))
        for i, k in zip(*np.nonzero(np.triu(found >= limit, 1)), strict=True):
            first, second = placed[i], placed[k]
            what = f"is nearly that of {first.edit.id!r} ({how}: {found[i, k]:.2f}, allowed below {limit})"
            yield _problem(second, "original_prompt", what, "show something else")


def _balance(placed: Sequence[Placed]) -> Iterator[Problem]:
    edits = [one.edit for one in placed]
    for category in CATEGORY_NAMES:
        of_category = [edit for edit in edits if edit.category == category]
        yield from _exactly(f"{category} edits", len(of_category), PER_CATEGORY)
        for split, wanted in PER_SPLIT.items():
            count = sum(edit.tags.get("split") == split for edit in of_category)
            yield from _exactly(f"{category} edits of {split}", count, wanted)
    groups = [("in the set", edits)]
    for category, split in itertools.product(CATEGORY_NAMES, ("", *SPLITS)):
        chosen = [edit for edit in edits if edit.category == category and split in ("", edit.tags.get("split"))]
        groups.append((f"in {category}{f' of {split}' if split else ''}", chosen))
    for name, values in (("subject", SUBJECTS), ("look", LOOKS)):
        for where, group in groups:
            counts = Counter(edit.tags.get(name) for edit in group)
            share = len(group) / len(values)
            least, most = math.floor(share * (1 - BALANCE)), math.ceil(share * (1 + BALANCE))
            for value in values:
                if not least <= counts[value] <= most:
                    said = f"tags.{name} {value!r} stands {counts[value]} times {where}"
                    yield Problem(said, f"have {least} to {most}", field=f"tags.{name}", value=value)


def _exactly(what: str, count: int, wanted: int) -> Iterator[Problem]:
    if count != wanted:
        yield Problem(f"there are {count} {what}", f"have {wanted}", field="category", value=str(count))


def _vocabulary(placed: Sequence[Placed], path: Path) -> Iterator[Problem]:
    """Yields problems: words that are not in the set's reviewed list, at the edits where they stand, and words there
    that no edit uses."""
    known = {line.strip() for line in read_lines(path)}
    used: set[str] = set()
    for one in placed:
        words = set(words_of([one.edit]))
        used |= words
        for word in sorted(words - known):
            said, remedy = f"the word {word!r} is not in {path.name}", "mend its spelling, or add it there"
            yield Problem(said, remedy, one.file, one.line, one.edit.id, "original_prompt", word)
    for word in sorted(known - used):
        yield Problem(f"no edit has the word {word!r}", "remove it", str(path), field="word", value=word)


def content_words(prompt: str) -> list[str]:
    """Returns the words of a prompt that say what it shows."""
    words = re.findall(r"[^\W_]+(?:-[^\W_]+)*", prompt.lower())
    return [word for word in words if word not in STOP_WORDS | LOOK_WORDS]


def jaccard(prompts: Sequence[str]) -> np.ndarray:
    """Returns the Jaccard similarity `[n, n]` of the sets of content words: shared words over all words of the two."""
    holds = _counts([set(content_words(prompt)) for prompt in prompts]).toarray()
    shared = holds @ holds.T
    sizes = holds.sum(axis=1)
    return shared / np.maximum(sizes[:, None] + sizes[None] - shared, 1)


def ngram_cosine(prompts: Sequence[str]) -> np.ndarray:
    """Returns the cosine similarity `[n, n]` of the prompts embedded by their letters.

    A prompt's vector counts the runs of 3 to 5 letters within its content words (Damashek, "Gauging Similarity with
    n-Grams", 1995), as 1 + log(count), times log((1 + n) / (1 + prompts with that run)) + 1. It needs no weights, so it
    says the same on every machine; it knows nothing of meaning.
    """
    counts_of_grams = [Counter(gram for word in content_words(prompt) for gram in _grams(word)) for prompt in prompts]
    counts = _counts(counts_of_grams)
    counts.data = 1 + np.log(counts.data)
    num_prompts_with = np.bincount(counts.indices, minlength=counts.shape[1])
    weighted = counts.multiply(np.log((1 + len(prompts)) / (1 + num_prompts_with)) + 1).tocsr()
    norms = np.sqrt(weighted.multiply(weighted).sum(axis=1))
    unit = sparse.diags_array(1 / np.maximum(norms, 1e-12)) @ weighted
    return (unit @ unit.T).toarray()


def _grams(word: str) -> list[str]:
    padded = f" {word} "
    return [padded[start : start + n] for n in NGRAMS for start in range(len(padded) - n + 1)]


def _counts(bags: Sequence[Counter | set]) -> sparse.csr_array:
    """Returns counts `[bags, different items]`."""
    number = {item: i for i, item in enumerate(sorted({item for bag in bags for item in bag}))}
    counted = [Counter(bag) for bag in bags]
    rows: np.ndarray = np.repeat(np.arange(len(bags)), [len(bag) for bag in counted])
    columns = [number[item] for bag in counted for item in bag]
    values = [float(count) for bag in counted for count in bag.values()]
    return sparse.csr_array((values, (rows, columns)), shape=(len(bags), len(number)))
