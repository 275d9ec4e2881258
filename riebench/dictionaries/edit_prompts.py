"""Prompts made of the shipped edits for SDXL: what their dev split shows, in each of its looks, colours and materials.

Strengths are chosen on the dev split and results reported on the test split, of which nothing is used here: an index
that is made of these prompts was told neither a prompt of the test split nor a phrase that only its prompts hold.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import chain, islice, zip_longest

import numpy as np

from riebench.edits.edit import Edit, load_edits, split_of

SET, SPLIT = "riebench", "dev"
EXCHANGED = ("change_colour", "change_material")  # categories whose words go with what their other edits show
OF = " of "  # between the look and what is shown, as in "a pencil sketch of a tortoise"


def edit_prompts(count: int = 0, seed: int = 0) -> list[str]:
    """Returns different prompts in an order that is drawn from `seed`: one of what each dev prompt shows, then another
    of each, and so on. count: so many, or as many as there are; 0 for all.

    A prompt has the look of one dev prompt ("a pencil sketch") and what another shows ("a tortoise walking on gravel"),
    and of the edits of colours and materials also the colour or material of a third.
    """
    edits = split_of(load_edits(SET), SPLIT)
    looks = sorted({prompt.partition(OF)[0] for edit in edits for prompt in _prompts(edit)})
    words = {name: _words([edit for edit in edits if edit.category == name]) for name in EXCHANGED}
    drawn, turns = np.random.default_rng(seed), []
    for edit in edits:
        for prompt in _prompts(edit):
            shown = _exchanged(prompt.partition(OF)[2], edit, words.get(edit.category, []))
            pool = [f"{look}{OF}{one}" for one in shown for look in looks]
            turns.append([pool[number] for number in drawn.permutation(len(pool))])
    order = [turns[number] for number in drawn.permutation(len(turns))]
    found = dict.fromkeys(prompt for prompt in chain.from_iterable(zip_longest(*order)) if prompt)
    return list(islice(found, count or None))


def _prompts(edit: Edit) -> list[str]:
    """Returns the prompts of an edit that begin with their look."""
    return [prompt for prompt in (edit.original_prompt, edit.edited_prompt) if OF in prompt]


def _words(edits: Sequence[Edit]) -> list[str]:
    """Returns the single words that edits exchange, without their articles."""
    found = {_bare(edit.tags[side]) for edit in edits for side in ("from", "to")}
    return sorted(word for word in found if " " not in word)


def _exchanged(shown: str, edit: Edit, words: Sequence[str]) -> list[str]:
    """Returns what is shown as it is, and with each of the words in the place of what its edit exchanges."""
    own = "|".join(re.escape(bare) for side in ("from", "to") if (bare := _bare(edit.tags[side])))
    others = [_with_articles(re.sub(rf"\b({own})\b", word, shown, count=1)) for word in words]
    return list(dict.fromkeys([shown, *others]))


def _bare(phrase: str) -> str:
    return re.sub(r"^an? ", "", phrase)


def _with_articles(text: str) -> str:
    """Returns text with "an" before vowels and "a" before consonants, as all prompts of the set have it."""
    return re.sub(r"\ban? (?=(\w))", lambda found: "an " if found[1] in "aeiou" else "a ", text)
