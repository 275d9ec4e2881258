"""Verdicts beside a known truth, and beside those of methods without a dictionary; by hand."""

from __future__ import annotations

import pandas as pd
import pytest

from riebench.analysis.across import SOURCE
from riebench.analysis.truth import against_truth, agreement_of_verdicts, count_outcomes

BLOCKS = ("a", "b", "c")
#: Method -> category -> (Shapley values of the blocks, verdict).
FOUND = {
    "sae": {
        "pose": ((0.1, 0.5, 0.0), "b"),
        "colour": ((0.4, 0.1, 0.3), "a"),
        "style": ((0.1, 0.2, 0.3), "not separable"),
        "all": ((0.3, 0.3, 0.3), "not separable"),
    },
    "prompt-injection": {
        "pose": ((0.0, 0.9, 0.1), "b"),
        "colour": ((0.0, 0.1, 0.9), "c"),
        "style": ((0.0, 0.1, 0.9), "c"),
        "all": ((0.0, 0.6, 0.3), "b"),
    },
}
PLANTED = {"world@1": {"pose": "b", "colour": "c", "style": "c"}}


def effects_of(found=FOUND, backbone="world@1", run="one", value="gain"):
    about = {"run": run, "backbone": backbone, "steps": 1, "strength": 1.0, "window": "all", "value": value}
    return pd.DataFrame(
        about
        | {"method": method, "category": category, "block": block, "shapley": shapley, "verdict": verdict}
        | {"lead_low": 0.05, "lead_high": 0.6, "lead_interval": "95 %"}
        for method, categories in found.items()
        for category, (values, verdict) in categories.items()
        for block, shapley in zip(BLOCKS, values, strict=True)
    )


def test_each_verdict_is_recovered_false_or_not_separable():
    judged = against_truth(effects_of(), PLANTED)
    assert list(judged.columns)[: len(SOURCE)] == SOURCE
    rows = {(row.method, row.category): (row.planted, row.verdict, row.outcome) for row in judged.itertuples()}
    assert rows == {
        ("sae", "pose"): ("b", "b", "recovered"),
        ("sae", "colour"): ("c", "a", "false"),
        ("sae", "style"): ("c", "not separable", "not separable"),
        ("prompt-injection", "pose"): ("b", "b", "recovered"),
        ("prompt-injection", "colour"): ("c", "c", "recovered"),
        ("prompt-injection", "style"): ("c", "c", "recovered"),
    }
    leads = judged.set_index(["method", "category"])["lead"]
    assert leads["sae"].to_list() == pytest.approx([0.4, -0.1, 0.1])
    ends = judged.set_index(["method", "category"])[["lead_low", "lead_high"]]
    assert ends.loc[("sae", "pose")].to_list() == [0.05, 0.6]
    assert ends.loc[("sae", "colour")].isna().all(), "the interval is of another block's lead"
    counts = count_outcomes(judged).set_index("method")[["recovered", "false", "not separable", "categories"]]
    assert counts.loc["sae"].to_list() == [1, 1, 1, 3] and counts.loc["prompt-injection"].to_list() == [3, 0, 0, 3]


def test_what_is_not_known_is_not_judged():
    unknown = effects_of(backbone="other@1")
    assert against_truth(unknown, PLANTED).empty and count_outcomes(against_truth(unknown, PLANTED)).empty
    both = pd.concat([unknown, effects_of()])
    assert set(against_truth(both, PLANTED)["backbone"]) == {"world@1"}
    fewer = effects_of()[lambda frame: frame["block"] != "c"]  # a run without the block that carries colour and style
    assert set(against_truth(fewer, PLANTED)["category"]) == {"pose"}


def test_methods_agree_where_both_name_a_block():
    head, row = agreement_of_verdicts(effects_of(), "gain").splitlines()[1:]
    assert head.split("  ")[0] == "run"
    assert row.split() == ["one", "sae", "x1.0", "prompt-injection", "1", "1", "1", "colour", "(a,", "c)"]


def test_methods_of_other_runs_values_and_models_are_not_compared():
    sae, injection = ({name: FOUND[name]} for name in FOUND)
    assert agreement_of_verdicts(effects_of(sae), "gain") == agreement_of_verdicts(effects_of(injection), "gain") == ""
    for words in ({"run": "two"}, {"backbone": "other@1"}, {"value": "success"}):
        assert agreement_of_verdicts(pd.concat([effects_of(sae), effects_of(injection, **words)]), "gain") == ""
    together = pd.concat([effects_of(), effects_of(run="two")])
    assert len(agreement_of_verdicts(together, "gain").splitlines()) == 2 + 2
