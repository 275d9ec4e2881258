"""The table of verdicts that a report opens with: what it says beside a known truth, and which case it shows."""

from __future__ import annotations

import copy
from urllib.parse import unquote

import pytest
from test_report import BLOCKS, HOSTILE, Page, make_run

from riebench.analysis import summarise
from riebench.report import write_report
from riebench.report.examples import examples_of, next_block
from riebench.report.verdicts import changed_words, truth_answer, verdicts_section

TRUE = {"change_object": "down.2.1", "change_colour": "up.0.1", "change_style": "up.0.0"}
GAIN, SUCCESS = "clip_text_edited", "oracle_success"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(folder, scores, summary) of a run with three categories of seven edits, on two seeds, whose oracle says yes
    or no."""
    folder = tmp_path_factory.mktemp("a run")
    scores = make_run(folder, num_edits=7, seeds=(42, 43))
    scores[SUCCESS] = (scores[SUCCESS] > 0.5).astype(float)
    return folder, scores, summarise(scores, BLOCKS, resamples=100, planted=TRUE)


def page_of(run, summary=None, scores=None, prompts=None) -> Page:
    folder, own, of_run = run
    scores = own if scores is None else scores
    return Page(verdicts_section(summary or of_run, scores, folder, prompts or {}))


def cells_of(page: Page, kind: str) -> list[str]:
    return [attributes["data-head"] for attributes in page.all("td") if kind in attributes["class"].split()]


def with_verdicts(summary: dict, **verdicts: str) -> dict:
    """The summary with other verdicts by gain."""
    changed = copy.deepcopy(summary)
    for category, verdict in verdicts.items():
        changed["dominance"][0]["categories"][category]["dominant"][GAIN] = verdict
    return changed


def test_the_verdict_of_each_category_stands_beside_the_planted_block(run):
    summary = with_verdicts(run[2], change_object="down.2.1", change_colour="mid.0", change_style="not separable: why")
    page = page_of(run, summary)
    assert cells_of(page, "told") == ["planted block", "sae, by gain in CLIP", "sae, by oracle success"] * 3
    assert "✓ down.2.1" in page.text and "✗ mid.0" in page.text and "– why" in page.text
    said = truth_answer(summary)
    assert "Verdicts of sae: 1 of 3 as planted by gain in CLIP (1 name another, 1 name none)," in said
    assert "words of each category’s edits can enter by one block alone" in said


def test_a_method_that_needs_no_sae_has_columns_of_its_own(run):
    summary = with_verdicts(run[2], **TRUE)
    summary["dominance"].append({**summary["dominance"][0], "method": "prompt-injection"})
    assert cells_of(page_of(run, summary), "told")[3:5] == [
        "prompt-injection, by gain in CLIP",
        "prompt-injection, by oracle success",
    ]
    said = truth_answer(summary)
    assert "sae: 3 of 3 as planted by gain in CLIP, " in said
    assert "Of prompt-injection, which needs no SAE: 3 of 3 as planted by gain in CLIP, " in said


def test_without_known_truth_there_is_no_such_column(run, tmp_path):
    folder, scores, known = run
    summary = {key: value for key, value in with_verdicts(known, change_object="mid.0").items() if key != "planted"}
    text = write_report(folder, summary, scores, {}).read_text()
    assert "planted" not in text.partition("</style>")[2].lower() and "✓" not in text and truth_answer(summary) == ""
    page = page_of(run, summary)
    assert "mid.0" in page.text and "named block alone" in page.text
    assert "planted" in write_report(folder, known, scores, {}).read_text().lower()


def test_the_case_shown_is_the_middle_one_by_success_and_gain(run):
    folder, scores, summary = run
    shown = examples_of(summary, scores, folder)
    assert list(shown) == list(TRUE)
    for category, block in TRUE.items():
        rows = scores[scores["category"] == category]
        keyed = []
        for (edit, seed), case in rows.groupby(["edit", "seed"]):
            own = case[(case["method"] == "sae") & (case["blocks"] == block)].iloc[0]
            ceiling = case[case["method"] == "oracle-prompt"].iloc[0]
            if ceiling[SUCCESS] == 1:
                gain = own[GAIN] - case[case["method"] == "noop"].iloc[0][GAIN]
                keyed.append((own[SUCCESS], gain, edit, seed, own["image"]))
        keyed.sort()
        success, gain, edit, seed, image = keyed[(len(keyed) - 1) // 2]
        example = shown[category]
        assert (example.edit, example.seed) == (edit, seed)
        original, edited, own, other = example.pictures
        assert original.path.endswith("original-0123456789ab.png") and edited.path.endswith("edited-0123456789ab.png")
        assert (own.path, own.block, own.success, own.gain) == (image, block, success == 1, pytest.approx(gain))
        assert other.block == BLOCKS[(BLOCKS.index(block) + 1) % 4] == next_block(block, summary)


def test_failed_cases_and_such_as_even_the_edited_prompt_fails_are_not_shown(run):
    folder, scores, summary = run
    only = examples_of(summary, scores, folder)["change_colour"]
    scores = scores.copy()
    scores.loc[(scores["category"] == "change_object") & (scores["method"] == "oracle-prompt"), SUCCESS] = 0.0
    gone = (scores["edit"] == only.edit) & (scores["seed"] == only.seed) & (scores["blocks"] == "down.2.1")
    scores.loc[gone, "status"] = "failed"  # the block behind up.0.1, the last
    shown = examples_of(summary, scores, folder)
    assert "change_object" not in shown and (shown["change_colour"].edit, shown["change_colour"].seed) != (
        only.edit,
        only.seed,
    )
    page = page_of(run, scores=scores)
    assert len(page.all("img")) == 8 and "change object" in page.text


def test_without_an_oracle_cases_are_ordered_by_gain_alone(run):
    folder, scores, _ = run
    scores = scores.drop(columns=[SUCCESS, "oracle_preservation"])
    summary = summarise(scores, BLOCKS, resamples=50, planted=TRUE)
    own = scores[(scores["method"] == "sae") & (scores["blocks"] == "up.0.1")].set_index(["edit", "seed"])[GAIN]
    gain = (own - scores[scores["method"] == "noop"].set_index(["edit", "seed"])[GAIN])[
        lambda s: s.index.isin(own.index)
    ]
    gain = gain[[edit.startswith("change_colour") for edit, _ in gain.index]].sort_values()
    example = examples_of(summary, scores, folder)["change_colour"]
    assert (example.edit, example.seed) == gain.index[(len(gain) - 1) // 2] and example.pictures[2].success is None
    page = page_of((folder, scores, summary))
    assert "oracle" not in page.text and f"up.0.1: gain {example.pictures[2].gain:+.3f}" in page.text


def test_pictures_are_files_of_the_run_and_missing_ones_are_said_to_be(run):
    folder, scores, summary = run
    page = page_of(run)
    assert len(page.all("img")) == 12
    for picture in page.all("img"):
        assert (folder / unquote(picture["src"])).is_file() and picture["alt"] and picture["loading"] == "lazy"
    assert page_of(run, scores=scores.assign(image="../outside.png")).text.count("no image") == 6
    alone = summary | {"blocks": ["down.2.1"]}
    assert next_block("down.2.1", alone) == ""


def test_of_two_prompts_the_words_that_differ_are_shown(run):
    assert changed_words("a red cat", "a blue cat") == ("red", "blue")
    assert changed_words("a cat", "a cat in a hat") == ("", "in a hat")
    assert changed_words("a a", "a a a") == ("", "a") and changed_words("same", "same") == ("", "")
    prompts = dict.fromkeys(run[1]["edit"], ("a cat in a hat", "a cat"))
    assert "in a hat → nothing" in page_of(run, prompts=prompts).text


def test_hostile_names_and_prompts_are_text(run):
    summary = with_verdicts(run[2], change_object=HOSTILE)
    summary["planted"] = dict(TRUE) | {"change_object": HOSTILE}
    prompts = dict.fromkeys(run[1]["edit"], (HOSTILE, "b"))
    page = page_of(run, summary, prompts=prompts)
    assert not page.all("script") and page.text.count('alert("x")') >= 3


def test_a_run_at_one_strength_has_no_curves_and_says_so(run):
    folder, scores, summary = run
    assert "There are no lines" not in write_report(folder, summary, scores, {}).read_text()
    scores = scores[(scores["method"] != "dense") | (scores["strength"] == 1)]
    summary = summarise(scores, BLOCKS, resamples=50)
    text = write_report(folder, summary, scores, {}).read_text()
    assert "no method was run at several strengths" in text and "Lines join" not in text
    assert "Matched preservation" not in text.partition("Words</h2>")[0]
