"""A run's verdicts beside the planted blocks: counted, printed, and not there where no block is known."""

from __future__ import annotations

import copy

import pytest
from planted import BLOCKS, PLANTED, make_scores

from riebench.analysis import block_table, summarise
from riebench.analysis.planted import Count, count_planted, outcome_of, planted_of
from riebench.analysis.summary import TABLE_WIDTH
from riebench.analysis.verdicts import NO_CASE, SHARED, WITHHELD

GAIN, SUCCESS = "clip_text_edited", "oracle_success"
#: In the scores, "alone" gains by up.0.0 alone, "together" by two blocks, and "nothing" gains nothing.
TRUE = {"alone": "up.0.0", "together": "up.0.1"}


@pytest.fixture(scope="module")
def frame():
    return make_scores(PLANTED, num_edits=8)


@pytest.fixture(scope="module")
def summary(frame):
    return summarise(frame, BLOCKS, resamples=500, planted=TRUE | {"of another run": "mid.0"})


@pytest.fixture(scope="module")
def unknown(frame):
    return summarise(frame, BLOCKS, resamples=500)


def test_the_summary_says_the_blocks_of_its_own_categories(summary, unknown):
    assert summary["planted"] == planted_of(summary) == TRUE
    assert unknown["planted"] == {} and {**summary, "planted": {}} == unknown


def test_a_verdict_names_the_planted_block_another_or_none():
    assert [outcome_of(verdict, "mid.0") for verdict in ("mid.0", "up.0.1")] == ["recovered", "false"]
    assert {outcome_of(verdict, "mid.0") for verdict in (SHARED, NO_CASE, f"{WITHHELD}: 3")} == {"not separable"}


def test_counts_are_those_of_a_loop(summary):
    found = {
        "categories": {f"c{i}": {"dominant": {GAIN: verdict}} for i, verdict in enumerate(("a", "b", SHARED, "a"))}
    }
    found["categories"]["c4"] = {"dominant": {}}  # without a valid case
    assert count_planted(found, GAIN, dict.fromkeys(("c0", "c1", "c2", "c4"), "a")) == Count(1, 1, 2)
    assert count_planted(found, GAIN, {"c3": "a"}).categories == 1
    assert count_planted(found, SUCCESS, {"c3": "a"}) is None and count_planted(found, GAIN, {}) is None
    assert count_planted(summary["dominance"][0], GAIN, TRUE) == Count(1, 0, 1)


def test_the_terminals_table_has_the_planted_block_beside_the_verdict(summary):
    lines = block_table(summary).splitlines()
    assert max(map(len, lines)) <= TABLE_WIDTH
    ends = {line.split()[0]: line.split()[-1] for line in lines[1:6]}
    assert ends == {"category": "planted", "alone": "up.0.0", "together": "up.0.1", "nothing": "-", "all": "-"}
    assert lines[-3].startswith("Planted: the one block by which this model's weights let the words")
    assert lines[-2] == "sae, by gain in CLIP: 1 of 2 categories name the planted block; 0 name another; 1 name none"
    assert lines[-1].startswith("sae, by oracle success: 0 of 2 categories name the planted block; 0 name another")


def test_a_false_verdict_is_counted_as_one(summary):
    wrong = copy.deepcopy(summary)
    wrong["dominance"][0]["categories"]["alone"]["dominant"][GAIN] = "mid.0"
    assert "sae, by gain in CLIP: 0 of 2 categories name the planted block; 1 name another; 1 name none" in block_table(
        wrong
    )


def test_a_method_that_needs_no_dictionary_is_counted_beside_the_headline(summary):
    more = copy.deepcopy(summary)
    more["dominance"] += [{**more["dominance"][0], "method": name} for name in ("prompt-injection", "dense")]
    text = block_table(more)
    assert "prompt-injection, by gain in CLIP: 1 of 2 categories" in text and "dense, by" not in text


def test_without_a_known_block_nothing_is_said_of_any(unknown):
    old = {key: value for key, value in unknown.items() if key != "planted"}  # of a run from before it was told
    assert block_table(old) == block_table(unknown)
    assert "planted" not in block_table(unknown).lower()
