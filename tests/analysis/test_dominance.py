"""Block effects and verdicts, against their definitions, the axioms, and planted truths."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys
from statistics import NormalDist, mean, stdev

import numpy as np
import pandas as pd
import pytest
from planted import BLOCKS, PLANTED, make_scores
from scipy.special import stdtrit

from riebench.analysis import dominance_over, summarise, verdict_table
from riebench.analysis.coalitions import (
    EXACT_BLOCKS,
    coalitions_of,
    needed_subsets,
    sampled_orders,
    subset_mask,
    subset_name,
    subset_names,
)
from riebench.analysis.dominance import dominance, efficiency
from riebench.analysis.statistics import MIN_EDITS, TOO_FEW_DIFFER, edit_weights, edits_needed
from riebench.analysis.verdicts import (
    NO_EFFECT,
    NO_GAIN,
    ONE_BLOCK,
    SHARED,
    TOO_FEW,
    explanation,
    names_block,
    what_to_do,
)
from riebench.core.errors import UserError

NINE = tuple("abcdefghi")


def masks_of(blocks, subsets):
    return [subset_mask(blocks, "+".join(subset)) for subset in subsets]


def coalitions(blocks, **sampling):
    return coalitions_of(len(blocks), masks_of(blocks, needed_subsets(blocks, **sampling)))


def random_game(blocks, seed):
    """v of every subset, by bit mask, with v(empty) = 0."""
    values = np.random.default_rng(seed).normal(size=1 << len(blocks))
    values[0] = 0.0
    return values


def members(num_blocks):
    """`[2^n, n]`, one where the block is in the subset."""
    return np.arange(1 << num_blocks)[:, None] >> np.arange(num_blocks) & 1


# ---- subsets


def test_names_of_subsets_and_back():
    assert subset_names(("a", "b")) == ["", "a", "b", "a+b"]
    assert subset_name(BLOCKS, 0b1010) == "mid.0+up.0.1"
    assert subset_mask(BLOCKS, "up.0.1+mid.0") == 0b1010
    assert subset_mask(BLOCKS, "") == 0
    assert subset_mask(BLOCKS, "mid.0+elsewhere") is None


def test_all_subsets_are_needed_to_eight_blocks_and_few_beyond():
    assert needed_subsets(("a", "b", "c")) == [tuple(s) for s in ("a", "b", "c", "ab", "ac", "bc", "abc")]
    assert len(needed_subsets(tuple("abcdefgh"))) == 255
    needed = needed_subsets(tuple("abcdefghijk"), seed=5, orders=16)
    assert len(needed) == len(set(needed)) <= 16 * 8 + 2 * 11 + 1 and needed[-1] == tuple("abcdefghijk")
    assert {s for s in needed if len(s) == 1} == {(b,) for b in "abcdefghijk"}
    assert sum(len(s) == 10 for s in needed) == 11
    assert needed == needed_subsets(tuple("abcdefghijk"), seed=5, orders=16)
    assert needed != needed_subsets(tuple("abcdefghijk"), seed=6, orders=16)
    for order in sampled_orders(tuple("abcdefghijk"), 16, 5):
        assert {frozenset(order[:size]) for size in range(1, 12)} <= set(map(frozenset, needed))


def test_sampled_orders_come_in_pairs_of_opposites():
    orders = sampled_orders(NINE, 7, seed=1)
    assert len(orders) == 7 and all(sorted(order) == list(NINE) for order in orders)
    assert orders[1] == orders[0][::-1] and orders[3] == orders[2][::-1]
    assert len(set(orders)) == 7


def test_subsets_that_do_not_suffice_give_nothing():
    assert coalitions_of(4, range(1, 16)).estimator == "exact"
    assert coalitions_of(4, [mask for mask in range(1, 16) if mask != 0b0110]) is None
    assert coalitions_of(9, masks_of(NINE, needed_subsets(NINE))).estimator == "sampled"
    ends = [mask for mask in range(1, 512) if mask.bit_count() in (1, 8, 9)]
    assert coalitions_of(9, ends) is None  # no way from one block to eight
    assert coalitions_of(9, [mask for mask in masks_of(NINE, needed_subsets(NINE)) if mask != 4]) is None
    assert coalitions_of(9, range(1, 512)).estimator == "exact"


@pytest.mark.process
def test_planning_subsets_takes_neither_torch_nor_pandas():
    code = "import sys\nfrom importlib import util\nspec = util.spec_from_file_location('c', sys.argv[1])\n"
    code += (
        "c = util.module_from_spec(spec); sys.modules['c'] = c; spec.loader.exec_module(c); c.needed_subsets('abc')\n"
    )
    code += "assert not {'torch', 'pandas'} & set(sys.modules)"
    module = sys.modules[needed_subsets.__module__].__file__
    subprocess.run([sys.executable, "-c", code, module], check=True)


# ---- effects


def brute_shapley(value, blocks):
    """Average marginal gain over all orders in which the blocks can arrive."""
    orders = list(itertools.permutations(blocks))
    total = dict.fromkeys(blocks, 0.0)
    for order in orders:
        for i, block in enumerate(order):
            total[block] += value(frozenset(order[: i + 1])) - value(frozenset(order[:i]))
    return [total[block] / len(orders) for block in blocks]


@pytest.mark.parametrize("num_blocks", [1, 2, 3, 4, 6])
def test_effects_against_the_definition_over_orders(num_blocks):
    blocks = tuple("abcdef")[:num_blocks]
    draws = random_game(blocks, num_blocks)
    by_set = {frozenset(name.split("+")) - {""}: v for name, v in zip(subset_names(blocks), draws, strict=True)}
    every, found = frozenset(blocks), coalitions(blocks)
    assert found.estimator == "exact" and found.masks == tuple(range(1 << num_blocks))
    assert draws @ found.shapley == pytest.approx(brute_shapley(by_set.get, blocks))
    assert draws @ found.solo == pytest.approx([by_set[frozenset({b})] for b in blocks])
    assert draws @ found.leave_one_out == pytest.approx([by_set[every] - by_set[every - {b}] for b in blocks])


def test_shapley_weights_of_eight_blocks_are_the_formulas():
    found, n = coalitions(tuple("abcdefgh")), EXACT_BLOCKS
    inside = members(n)
    sizes = inside.sum(axis=1, keepdims=True)
    weight = np.vectorize(lambda s: math.factorial(s) * math.factorial(max(n - s - 1, 0)) / math.factorial(n))
    assert found.shapley == pytest.approx(np.where(inside, weight(np.maximum(sizes - 1, 0)), -weight(sizes)))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("blocks", [BLOCKS, NINE])
def test_values_sum_to_the_effect_of_all_blocks(blocks, seed):
    found, game = coalitions(blocks, seed=seed), random_game(blocks, seed)
    assert (game[list(found.masks)] @ found.shapley).sum() == pytest.approx(game[-1])


@pytest.mark.parametrize("blocks", [BLOCKS, NINE])
def test_a_block_that_adds_the_same_everywhere_is_worth_that(blocks):
    found, game = coalitions(blocks), random_game(blocks, 0)
    has_first = members(len(blocks))[:, 0].astype(bool)
    for worth in (0.0, 0.3):
        game[has_first] = game[~has_first] + worth
        assert (game[list(found.masks)] @ found.shapley)[0] == pytest.approx(worth)


def test_blocks_that_do_the_same_are_worth_the_same():
    sizes = members(4).sum(axis=1)
    game = np.array([0.0, 0.3, 0.1, 0.7, 0.2])[sizes]
    assert game @ coalitions(BLOCKS).shapley == pytest.approx([0.05] * 4)


@pytest.mark.parametrize("blocks", [BLOCKS, NINE])
def test_values_of_a_sum_of_games_are_the_sums(blocks):
    found = coalitions(blocks)
    one, other = (random_game(blocks, seed)[list(found.masks)] for seed in (0, 1))
    assert (2 * one + other) @ found.shapley == pytest.approx(2 * (one @ found.shapley) + other @ found.shapley)


def test_sampled_values_are_unbiased_and_exact_for_pairs():
    n, game = len(NINE), random_game(NINE, 7)
    exact = game @ coalitions_of(n, range(1, 1 << n)).shapley
    found = [coalitions(NINE, seed=seed, orders=8) for seed in range(300)]
    values = np.array([game[list(one.masks)] @ one.shapley for one in found])
    z = (values.mean(axis=0) - exact) / (values.std(axis=0, ddof=1) / math.sqrt(len(values)))
    assert np.abs(z).max() < 3.5  # nine z-scores of a seeded draw
    inside = members(n)
    pairs = np.einsum("mi,ij,mj->m", inside, np.random.default_rng(1).normal(size=(n, n)), inside)
    assert pairs[list(found[0].masks)] @ found[0].shapley == pytest.approx(
        pairs @ coalitions_of(n, range(1, 1 << n)).shapley
    )


def mean_over_orders(game, orders):
    """The usual estimate: the marginal gains of each block, averaged over the sampled orders alone."""
    total = np.zeros(len(NINE))
    for order in orders:
        arrived = [subset_mask(NINE, "+".join(order[:size])) for size in range(len(NINE) + 1)]
        for block, before, after in zip(order, arrived, arrived[1:], strict=False):
            total[NINE.index(block)] += game[after] - game[before]
    return total / len(orders)


def test_all_chains_through_the_subsets_tell_more_than_the_orders_drawn():
    game = np.sqrt(members(9) @ np.random.default_rng(2).uniform(size=9))
    exact = game @ coalitions_of(9, range(1, 512)).shapley
    squares = []
    for seed in range(30):
        found = coalitions(NINE, seed=seed, orders=32)
        both = game[list(found.masks)] @ found.shapley, mean_over_orders(game, sampled_orders(NINE, 32, seed))
        squares.append([((values - exact) ** 2).mean() for values in both])
    of_chains, of_orders = np.mean(squares, axis=0)
    assert of_chains < 0.75 * of_orders


def test_sampled_values_converge_to_the_exact_ones():
    n, game = len(NINE), random_game(NINE, 7)
    exact = game @ coalitions_of(n, range(1, 1 << n)).shapley

    def error(orders):
        found = (coalitions(NINE, seed=seed, orders=orders) for seed in range(8))
        return np.sqrt(np.mean([(game[list(one.masks)] @ one.shapley - exact) ** 2 for one in found]))

    few, some, many = error(8), error(64), error(512)
    assert many < some / 2 < few / 4


# ---- verdicts


def judged(values_em, blocks, resamples=500):
    """The verdict on v of each subset, `[edits, 2^n]`."""
    values_em = np.asarray(values_em, dtype=float)
    found = coalitions_of(len(blocks), range(1, 1 << len(blocks)))
    return dominance(edit_weights(len(values_em), resamples, 0) @ values_em, found, blocks, len(values_em))


@pytest.mark.parametrize(
    ("solo", "num_edits", "verdict"),
    [
        ((0.3, 0.1), MIN_EDITS, "a"),
        ((0.3, 0.1), 6, "a"),  # there is no interval, but all edits say so, as they do once in 32 times without effect
        ((0.3, 0.1), 5, "not separable: too few edits"),
        ((0.2, 0.2), 8, "not separable: blocks share it"),
        ((0.0, -0.3), 9, "not separable: too few edits"),
        ((0.3, 0.1), 1, "not separable: too few edits"),
        ((-0.1, -0.3), MIN_EDITS, "not separable: no block raises it"),  # the first of two that both do harm
        ((0.0, -0.3), MIN_EDITS, "not separable: no block raises it"),
        ((0.0, 0.0), MIN_EDITS, "not separable: no block has an effect"),
        ((0.2, 0.2), MIN_EDITS, "not separable: blocks share it"),
    ],
)
def test_verdict_needs_a_lead_a_gain_and_enough_edits(solo, num_edits, verdict):
    values = np.tile([0.0, solo[0], solo[1], sum(solo)], (num_edits, 1))
    values[:, 1:] += np.linspace(-0.01, 0.01, num_edits)[:, None]
    assert judged(values, ("a", "b")).verdict == verdict


def test_where_one_block_alone_has_an_effect_more_edits_tell_who_leads():
    """The first block raises the value for sure; the second may do as much, or nothing: it is not shown to share it."""
    rng = np.random.default_rng(2)
    alone, rival = rng.normal(0.2, 0.05, 10), rng.normal(0.0, 0.4, 10)
    rival += 0.1 - rival.mean()
    found = judged(np.stack([0 * alone, alone, rival, alone + rival], axis=1), ("a", "b"))
    assert found.effects["a"].shapley.low > 0 > found.effects["b"].shapley.low and found.lead.low < 0
    assert found.verdict == TOO_FEW

    def by_power(values_e):  # Student's t would ask for one or two more
        return ((NormalDist().inv_cdf(0.975) + NormalDist().inv_cdf(0.8)) * stdev(values_e) / mean(values_e)) ** 2

    assert found.edits_needed == math.ceil(min(by_power(alone - rival), by_power(rival)))
    assert explanation({"": {"colour": (found.verdict, found.edits_needed)}})[1] == (
        f"  too few edits (colour): run about {found.edits_needed} edits a category"
    )


def test_the_edits_that_are_needed_are_about_enough():
    """Of data sets of so many edits with the mean and the spread of a small one, four in five name the block."""
    rng = np.random.default_rng(3)
    lead, spread = 0.1, 0.3
    needed = round(edits_needed(lead, spread))
    assert needed == 71
    found = rng.normal(lead, spread, (2_000, needed))
    statistic = found.mean(axis=1) / (found.std(axis=1, ddof=1) / math.sqrt(needed))
    assert (statistic > stdtrit(needed - 1, 0.975)).mean() == pytest.approx(0.8, abs=0.03)


@pytest.mark.parametrize(
    ("verdict", "needed", "words"),
    [
        (TOO_FEW, 10, "run at least 10 edits a category"),
        (TOO_FEW, None, "run more than 10,000 edits a category"),
        (SHARED, 40, "to rank the first two, run about 40 edits"),
        (NO_EFFECT, None, "try a greater strength"),
        (NO_GAIN, None, "try a greater strength"),
        (ONE_BLOCK, None, "run a backbone or a site with several blocks"),
        ("up.0.0", None, ""),
    ],
)
def test_every_verdict_without_a_block_says_what_to_do(verdict, needed, words):
    assert words in what_to_do(verdict, needed) and bool(words) == bool(what_to_do(verdict, needed))
    assert names_block(verdict) != verdict.startswith("not separable")


def test_the_lead_is_paired():
    """The first block beats the second by a little on every edit, though both vary by far more between edits."""
    level = np.linspace(0.1, 2.0, 20)
    found = judged(np.stack([0 * level, level + 0.02, level, 2 * level + 0.02], axis=1), ("a", "b"))
    assert found.verdict == "a"
    assert found.effects["a"].shapley.low < found.effects["b"].shapley.high
    assert found.lead.mean == pytest.approx(0.02) and found.lead.withheld == TOO_FEW_DIFFER  # all edits say the same


def test_one_block_has_no_rival():
    result = judged([[0.0, 0.5]] * 8, ("a",))
    assert result.effects["a"].shapley.mean == result.effects["a"].solo.mean == 0.5
    assert (result.verdict, result.lead) == ("not separable: there is one block", None)


@pytest.mark.parametrize("worth", [0.0, 0.5])
@pytest.mark.parametrize("num_edits", [MIN_EDITS, 12])
def test_equal_blocks_are_seldom_told_apart(worth, num_edits):
    rng = np.random.default_rng(0)
    true = worth * members(4).sum(axis=1)
    verdicts = []
    for _ in range(400):
        values = true + rng.normal(0, 0.5, size=(num_edits, 16))
        values[:, 0] = 0
        verdicts.append(judged(values, BLOCKS, resamples=400).verdict)
    assert np.mean([names_block(verdict) for verdict in verdicts]) <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / 400)
    if worth:  # nobody says that a block worth 0.5 has no effect, nor that one worth nothing shares it
        assert NO_EFFECT not in verdicts
    else:
        assert np.mean([verdict == SHARED for verdict in verdicts]) <= 0.05


@pytest.mark.parametrize("cost", [0.0019, 0.0])
def test_efficiency_is_withheld_where_a_subset_changes_next_to_nothing(cost):
    frame = make_scores({"alone": PLANTED["alone"], "quiet": PLANTED["alone"]}, num_edits=7)
    quiet = (frame["category"] == "quiet") & (frame["blocks"] == "mid.0")
    frame.loc[quiet, "lpips_original"] = cost
    summary = summarise(frame, BLOCKS, resamples=50)
    of = summary["dominance"][0]["categories"]
    assert "efficiency" in of["alone"]["effects"] and "efficiency" not in of["quiet"]["effects"]
    assert (
        of["quiet"]["dominant"]["efficiency"] == "withheld: 1 of 15 subsets of the blocks change less than LPIPS 0.002"
    )
    assert of["quiet"]["dominant"]["clip_text_edited"] == "up.0.0"
    effects = dominance_over([("run", summary)]).query("value == 'efficiency' and category == 'quiet'")
    assert effects["shapley"].isna().all() and effects["verdict"].str.startswith("withheld").all()
    table = verdict_table(dominance_over([("run", summary)]), "efficiency")
    assert "withheld (quiet): some subsets of the blocks change less than LPIPS 0.002" in table
    (line,) = [line for line in table.splitlines() if line.startswith("quiet")]
    assert line.endswith("withheld")


def test_efficiency_is_gain_for_cost_and_nothing_for_nothing():
    gains, costs = np.array([[0.0, 0.2, 0.3]]), np.array([[0.0, 0.1, 0.6]])
    assert efficiency(gains, costs).tolist() == [[0.0, 2.0, 0.5]]


# ---- planted truths, from scores to verdicts


@pytest.fixture(scope="module")
def summary():
    return summarise(make_scores(PLANTED), BLOCKS, resamples=2000)


def effects_of(summary, category, value="clip_text_edited"):
    return summary["dominance"][0]["categories"][category]["effects"][value]


@pytest.mark.slow
def test_planted_effects_are_recovered(summary):
    alone, together, nothing = (effects_of(summary, category) for category in ("alone", "together", "nothing"))
    for effect in ("solo", "leave_one_out", "shapley"):
        assert alone["up.0.0"][effect]["mean"] == pytest.approx(0.10, abs=0.02)
        assert alone["mid.0"][effect]["mean"] == pytest.approx(0.0, abs=0.02)
        assert nothing["mid.0"][effect]["mean"] == pytest.approx(0.0, abs=0.02)
    for block in ("down.2.1", "up.0.1"):
        assert together[block]["solo"]["mean"] == pytest.approx(0.0, abs=0.02)
        assert together[block]["leave_one_out"]["mean"] == pytest.approx(0.10, abs=0.02)
        assert together[block]["shapley"]["mean"] == pytest.approx(0.05, abs=0.01)
        assert together[block]["shapley"]["low"] > 0


def test_verdicts_of_planted_truths(summary):
    table = summary["dominance"][0]
    verdicts = {category: row["dominant"]["clip_text_edited"] for category, row in table["categories"].items()}
    assert verdicts == {"alone": "up.0.0", "together": SHARED, "nothing": NO_EFFECT}
    assert table["categories"]["alone"]["lead"]["clip_text_edited"]["low"] > 0
    together = table["categories"]["together"]["lead"]["clip_text_edited"]
    assert together["low"] < 0 < together["high"]


def test_shapley_values_sum_to_the_effect_of_all_blocks(summary):
    frame = make_scores(PLANTED)
    wide = frame[frame["category"] == "together"].pivot_table(
        index="edit", columns=["method", "blocks"], values="clip_text_edited"
    )
    whole = (wide["sae", "+".join(BLOCKS)] - wide["noop", ""]).mean()
    effects = effects_of(summary, "together")
    assert sum(effects[block]["shapley"]["mean"] for block in BLOCKS) == pytest.approx(whole)


def test_cost_is_the_distance_to_the_original_and_share_the_published_count(summary):
    row = summary["dominance"][0]["overall"]["effects"]["lpips_original"]
    assert [row[block]["shapley"]["mean"] for block in BLOCKS] == pytest.approx([0.1] * 4)
    assert [row[block]["share"] for block in BLOCKS] == pytest.approx([0.1, 0.2, 0.3, 0.4])


def test_efficiency_is_shared_out_by_ratios_of_means(summary):
    # one block gains 0.1 and each costs 0.1: v(S) = 1 / |S| where it is in S, else 0
    frame = make_scores({"alone": PLANTED["alone"]}, noise=0.0)
    row = effects_of(summarise(frame, BLOCKS, resamples=50), "alone", "efficiency")
    expected = brute_shapley(lambda chosen: ("up.0.0" in chosen) / max(len(chosen), 1), BLOCKS)
    assert [row[block]["shapley"]["mean"] for block in BLOCKS] == pytest.approx(expected)
    assert row["up.0.0"]["solo"]["mean"] == pytest.approx(1.0)
    assert sum(expected) == pytest.approx(1 / 4)
    assert summary["dominance"][0]["categories"]["alone"]["dominant"]["efficiency"] == "up.0.0"


@pytest.mark.slow
def test_nine_blocks_are_sampled_and_a_planted_one_is_found():
    frame = make_scores({"alone": lambda s: 0.1 * ("c" in s) + 0.02 * len(s)}, blocks=NINE, num_edits=8, seeds=(0,))
    table = summarise(frame, NINE, resamples=500)["dominance"][0]
    assert (table["estimator"], table["subsets"]) == ("sampled", len(needed_subsets(NINE)))
    assert table["overall"]["dominant"]["clip_text_edited"] == "c"
    shapley = [table["overall"]["effects"]["clip_text_edited"][block]["shapley"]["mean"] for block in NINE]
    assert shapley == pytest.approx([0.02, 0.02, 0.12, *[0.02] * 6], abs=0.01)


@pytest.mark.slow
def test_every_method_and_strength_on_all_subsets_has_a_table_headline_first():
    frame = make_scores({"alone": PLANTED["alone"]}, num_edits=2).assign(window="")
    subsets = frame[frame["method"] == "sae"]
    whole_twice = subsets[subsets["blocks"] == "+".join(BLOCKS)].assign(strength=2.0)
    weaker = subsets.assign(strength=0.25, window="first")
    norm = subsets.assign(
        method="norm", clip_text_edited=subsets["clip_text_edited"] + 1, window=["last 2", *["all"] * 59]
    )
    frame = pd.concat([weaker, frame, whole_twice, norm], ignore_index=True)
    tables = summarise(frame, BLOCKS, method=("norm", "sae"), resamples=50)["dominance"]
    assert [(table["method"], table["strength"], table["window"]) for table in tables] == [
        ("norm", 1.0, "all"),
        ("sae", 1.0, "all"),
        ("sae", 0.25, "first"),
    ]
    assert {table["subsets"] for table in tables} == {15}
    (first, *_) = summarise(frame, BLOCKS, method="sae", resamples=50)["dominance"]
    assert (first["method"], first["strength"]) == ("sae", 1.0)


# ---- over runs


def test_effects_of_several_runs_in_one_table(summary):
    base = make_scores({"alone": PLANTED["alone"]}).assign(backbone="base@25", steps=25)
    base.loc[base["method"] == "sae", "window"] = "last 2"
    runs = [("turbo", summary), ("base", summarise(base, BLOCKS, resamples=200))]
    effects = dominance_over(runs)
    assert list(effects.columns[:12]) == [
        *("run", "backbone", "steps", "method", "strength", "window"),
        *("category", "edits", "value", "block", "share", "solo"),
    ]
    ends = ["shapley_interval", "verdict", "edits_needed", "lead", "lead_low", "lead_high", "lead_interval"]
    assert list(effects.columns[-7:]) == ends
    assert len(effects) == (4 + 2) * 4 * 4  # categories and all of them, values, blocks
    row = effects.query("run == 'base' and category == 'alone' and value == 'clip_text_edited' and block == 'up.0.0'")
    withheld = effects["shapley_low"].isna()  # planted costs and successes are the same on every edit
    assert set(effects.loc[withheld, "value"]) == {"lpips_original", "oracle_success"}
    assert set(effects["edits"]) == {12, 36}
    assert (effects["shapley_interval"] == np.where(withheld, "too few differ", "95 %")).all()
    known = effects_of(runs[1][1], "alone")["up.0.0"]["shapley"]
    assert row[["shapley_low", "shapley", "shapley_high"]].iloc[0].tolist() == [
        known["low"],
        known["mean"],
        known["high"],
    ]
    lead = runs[1][1]["dominance"][0]["categories"]["alone"]["lead"]["clip_text_edited"]
    assert row[["lead_low", "lead", "lead_high"]].iloc[0].tolist() == [lead["low"], lead["mean"], lead["high"]]
    lines = verdict_table(effects).splitlines()
    assert lines[1].split("  ")[0] == "category" and "tinyworld-turbo@1 sae [all]" in lines[1]
    assert lines[1].endswith("base@25 sae [last 2]")
    told = lines.index("Where no block is named, the blocks are not separable:")
    shown = {line.split()[0]: line for line in lines[2:told]}
    assert "tinyworld-turbo@1 sae [all]\n  blocks share it (together" in "\n".join(lines[told:])
    assert list(shown) == ["alone", "together", "nothing", "all"]
    assert shown["alone"].endswith(f"up.0.0 {known['mean']:+.3f}") and shown["alone"].count("up.0.0") == 2
    assert shown["together"].split("  ")[-1] == "-"  # the second run has no such category
    assert "no block has an effect" in shown["nothing"] and "blocks share it" in shown["together"]


def test_runs_without_effects_and_unknown_values_are_errors(summary):
    without = summarise(
        make_scores({"alone": PLANTED["alone"]}, num_edits=1).query("method != 'sae'"), BLOCKS, resamples=50
    )
    assert without["dominance"] == []
    with pytest.raises(UserError, match="none of the runs measured block effects"):
        dominance_over([("one", without)])
    with pytest.raises(UserError, match="'shine' -> ask for one of clip_text_edited"):
        verdict_table(dominance_over([("one", summary)]), "shine")
