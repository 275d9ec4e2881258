"""Prompts of the shipped edits' words: all of the dev split, nothing of the test split."""

from __future__ import annotations

import re

import pytest

from riebench.core.errors import UserError
from riebench.dictionaries.edit_prompts import edit_prompts
from riebench.dictionaries.evaluate import _prompts
from riebench.dictionaries.prompts import read_prompts
from riebench.dictionaries.settings import DEFAULTS, make_grid
from riebench.edits.edit import load_edits


@pytest.fixture(scope="module")
def every():
    """All prompts that there are."""
    return edit_prompts()


def prompts_of(split: str) -> list[str]:
    edits = [edit for edit in load_edits("riebench") if edit.tags["split"] == split]
    return [prompt for edit in edits for prompt in (edit.original_prompt, edit.edited_prompt)]


def phrases_of(split: str) -> set[str]:
    """What the edits of a split exchange, add, take away and name as regions, without articles."""
    edits = [edit for edit in load_edits("riebench") if edit.tags["split"] == split]
    sides = [(e.tags["from"], e.tags["to"], e.original_region, e.edited_region) for e in edits]
    return {re.sub("^an? ", "", phrase) for phrases in sides for phrase in phrases if phrase}


def holds(text: str, phrase: str) -> bool:
    """Whether a text that begins and ends with a blank has a phrase."""
    return f" {phrase} " in text


@pytest.mark.slow
def test_no_prompt_of_the_test_split_is_in_them_and_no_phrase_that_is_only_there(every):
    assert not set(every) & set(prompts_of("test"))
    shown = {prompt.partition(" of ")[2] for prompt in prompts_of("test")} - {""}
    assert not shown & {prompt.partition(" of ")[2] for prompt in every}  # nor in another look
    dev, made = (f" {' | '.join(prompts)} " for prompts in (prompts_of("dev"), every))
    only = {phrase for phrase in phrases_of("test") if not holds(dev, phrase)}
    assert len(only) > 400 and [phrase for phrase in only if holds(made, phrase)] == []
    assert any(holds(made, phrase) for phrase in phrases_of("dev"))


def test_they_are_made_of_the_words_of_the_dev_split_and_show_all_that_it_shows(every):
    assert set(" ".join(every).split()) <= set(" ".join(prompts_of("dev")).replace(",", "").split())
    shown = {prompt.partition(" of ")[2] for prompt in prompts_of("dev")} - {""}
    first = edit_prompts(4096, 30_000)
    assert shown <= {prompt.partition(" of ")[2] for prompt in every}
    assert len(shown & {prompt.partition(" of ")[2] for prompt in first}) > 0.9 * len(shown)
    looks = {prompt.partition(" of ")[0] for prompt in first}
    assert len(looks) > 40 and "a neon sign" in looks and "a pencil sketch" in looks
    for colour in ("red", "purple", "green"):  # of things that have another colour there
        assert any(f"a {colour} motor scooter" in prompt for prompt in every)
    assert not re.search(r"\b(a [aeiou]|an [^aeiou])", " | ".join(every))


def test_they_are_different_and_drawn_from_the_seed(every):
    some = edit_prompts(500, 0)
    assert len(set(some)) == len(some) == 500 and len(set(every)) == len(every) > 20_000
    assert some == every[:500] and not set(some) == set(read_prompts("edits", count=500, seed=1)) < set(every)
    assert read_prompts("edits", count=500) == some
    with pytest.raises(UserError, match="edits holds"):
        read_prompts("edits", count=len(every) + 1)


def test_evaluations_on_sdxl_take_them_and_trainings_riebenchs_k():
    assert _prompts("", 3, "sdxl") == edit_prompts(3, 20_000)
    assert [one.k for one in make_grid(DEFAULTS["sdxl"]).sparsities] == [160]
    assert [one.k for one in make_grid(DEFAULTS["tinyworld"]).sparsities] == [4, 8, 16]
