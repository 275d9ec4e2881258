"""What failed is said: in sentences, in the summary, in the report, in a comparison, in an entry and by the exit
status."""

from __future__ import annotations

import json

import pandas as pd
import pytest
from planted import BLOCKS, PLANTED, fail, make_scores

from riebench.analysis import block_table, summarise
from riebench.analysis.failures import failure_sentences, failures_of, without_valid_case
from riebench.core.errors import NothingValid, UserError
from riebench.report.request import failures_section

BROKEN = "the dictionary mid.0 holds NaN"


def scores(where=lambda row: False, reason=lambda row: BROKEN, **words):
    """Planted scores of one category, those failed that `where` picks."""
    rows = make_scores({"alone": PLANTED["alone"]}, num_edits=3, **words).to_dict("records")
    return pd.DataFrame([fail(row, reason(row)) if where(row) else row for row in rows])


def test_what_never_fails_is_not_named():
    assert failures_of(scores()) == failure_sentences([], 3) == []
    summary = summarise(scores(), BLOCKS, resamples=20)
    assert summary["failures"] == [] and "All 6 planned cases are valid under every setting." in failures_section(
        summary
    )


def test_a_method_that_fails_everywhere_is_named_with_its_count_and_reason():
    frame = scores(lambda row: row["method"] == "sae", lambda row: f"sae: {BROKEN}")
    (found,) = failures_of(frame)
    by_hand = frame[frame["method"] == "sae"].groupby(["edit", "seed"]).ngroups
    assert found == {
        "method": "sae",
        "strength": 1.0,
        "planned": by_hand,
        "failed": by_hand,
        "reasons": {BROKEN: by_hand},
    }
    assert failure_sentences([found], 9) == [f"sae failed in {by_hand} of {by_hand} cases: {BROKEN}"]
    assert without_valid_case([found]) == ["sae"]
    summary = json.loads(json.dumps(summarise(frame, BLOCKS, method="dense", resamples=20)))
    assert summary["failures"] == [found]
    page = failures_section(summary)
    assert f"sae failed in 6 of 6 cases: {BROKEN}." in page and "valid under every other setting" in page
    assert "under every setting" not in page
    assert block_table(summary) == "Block effects were not measured: no case of sae is valid."


def test_reasons_are_grouped_and_the_rare_ones_counted():
    kinds = {("alone-0", 0): "a", ("alone-0", 1): "a", ("alone-1", 0): "b", ("alone-1", 1): "c", ("alone-2", 0): "d"}
    frame = scores(
        lambda row: row["method"] == "dense" and (row["edit"], row["seed"]) in kinds,
        lambda row: kinds[row["edit"], row["seed"]],
    )
    (found,) = failures_of(frame)
    assert found["reasons"] == {"a": 2, "b": 1, "c": 1, "d": 1} and without_valid_case([found]) == []
    assert failure_sentences([found]) == ["dense failed in 5 of 6 cases: a (2); b (1); c (1); and 1 other reasons"]
    summary = summarise(frame, BLOCKS, resamples=20)
    assert "dense failed in 5 of 6 cases" in failures_section(summary) and "In no table" in failures_section(summary)


def test_what_all_fail_on_is_said_once_and_strengths_are_told_apart():
    frame = scores(lambda row: row["edit"] == "alone-1", lambda row: "no region found")
    methods = len(frame[["method", "strength"]].drop_duplicates())
    found = failures_of(frame)
    assert len(found) == methods > 2
    assert failure_sentences(found, methods) == ["every method failed in 2 of 6 cases: no region found"]
    assert len(failure_sentences(found, methods + 1)) == methods
    two = pd.concat([frame, frame[frame["method"] == "dense"].assign(strength=2.0)])
    assert {"dense@1 failed in 2 of 6 cases: no region found", "dense@2 failed in 2 of 6 cases: no region found"} < set(
        failure_sentences(failures_of(two))
    )


def test_one_subset_of_the_blocks_that_fails_is_a_failure_of_the_case():
    frame = scores(lambda row: row["blocks"] == "mid.0" and row["edit"] == "alone-2", lambda row: "the image is black")
    (found,) = failures_of(frame)
    assert (found["method"], found["failed"], found["planned"]) == ("sae", 2, 6)


def test_a_run_of_failures_alone_ends_with_status_1_and_the_reason():
    with pytest.raises(NothingValid, match=f"no case is valid: noop failed in 6 of 6 cases: {BROKEN}") as caught:
        summarise(scores(lambda row: True), BLOCKS, resamples=20)
    assert caught.value.status == 1 and UserError.status == 2


@pytest.mark.slow
def test_the_run_says_so_and_its_exit_status_is_1(tmp_path, monkeypatch, capsys):
    from baselines.sae import SAE
    from riebench.cli import main

    words = "edits_per_category: 1\ncategories: [change_colour]\nseeds: [1, 2]\nresamples: 20\nblocks: [mid.0]\n"
    (tmp_path / "mine.yaml").write_text(words + "methods: [noop, sae, dense]\nsubsets_of: dense\n")
    command = ["run", str(tmp_path / "mine.yaml"), "--device", "cpu", "--out", str(tmp_path / "run")]
    assert main(command) == 0

    def plan(self, case):
        raise UserError(f"seed {case.seed} does not suit", remedy="take another")

    monkeypatch.setattr(SAE, "plan", plan)
    assert main([*command, "--cache", "never"]) == 1
    said = (
        "sae failed in 2 of 2 cases: seed 1 does not suit -> take another (1); seed 2 does not suit -> take another (1)"
    )
    assert f"riebench: {said}\n" in capsys.readouterr().err
    page = (tmp_path / "run" / "report.html").read_text()
    assert "sae failed in 2 of 2 cases" in page and "Without a valid case: sae." in page
    assert "under every setting" not in page
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["failures"][0]["failed"] == 2
