"""Which block matters: solo, leave-one-out and exact Shapley effects over all subsets of blocks, and the verdict.

Subsets are numbered by bit mask: bit i is set where block i is intervened on. v(S) is the value of intervening on S,
with v(empty) = 0. All three effects are linear in v, so each is a weight matrix from subsets to blocks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd

from riebench.analysis.frames import CASE, NOOP, SETTING, Setting, feature_counts, score_table
from riebench.analysis.statistics import Interval, bootstrap_intervals, bootstrap_weights, edit_means

NOT_SEPARABLE = "not separable"

#: With n edits, the least two-sided p of a paired sign test is 2^(1 - n): below six edits it cannot reach 5 %.
MIN_EDITS = 6


@dataclass(frozen=True)
class BlockEffects:
    solo: Interval
    leave_one_out: Interval
    shapley: Interval


@dataclass(frozen=True)
class Dominance:
    effects: dict[str, BlockEffects]
    verdict: str
    """A block's name, or "not separable"."""

    lead: Interval | None
    """Shapley value of the first block less that of the second; None where there is one block."""


def subset_names(blocks: tuple[str, ...]) -> list[str]:
    """The `blocks` cell of each subset, by bit mask; "" for the empty one."""
    return ["+".join(block for i, block in enumerate(blocks) if mask >> i & 1) for mask in range(1 << len(blocks))]


def solo_weights(num_blocks: int) -> np.ndarray:
    """`[2^n, n]`: v({i}) - v(empty)."""
    weights = np.zeros((1 << num_blocks, num_blocks))
    for i in range(num_blocks):
        weights[1 << i, i] += 1
        weights[0, i] -= 1
    return weights


def leave_one_out_weights(num_blocks: int) -> np.ndarray:
    """`[2^n, n]`: v(all) - v(all but i)."""
    every = (1 << num_blocks) - 1
    weights = np.zeros((1 << num_blocks, num_blocks))
    for i in range(num_blocks):
        weights[every, i] += 1
        weights[every ^ (1 << i), i] -= 1
    return weights


def shapley_weights(num_blocks: int) -> np.ndarray:
    """`[2^n, n]`: sum over S without i of |S|! (n - |S| - 1)! / n! times v(S with i) - v(S).

    Shapley, "A Value for n-Person Games", 1953.
    """
    weights = np.zeros((1 << num_blocks, num_blocks))
    for i in range(num_blocks):
        for mask in range(1 << num_blocks):
            if mask >> i & 1:
                continue
            size = mask.bit_count()
            weight = math.factorial(size) * math.factorial(num_blocks - size - 1) / math.factorial(num_blocks)
            weights[mask | 1 << i, i] += weight
            weights[mask, i] -= weight
    return weights


def subset_gains(
    frame: pd.DataFrame, blocks: tuple[str, ...], value: str, method: str, strength: float
) -> pd.DataFrame:
    """v(S) of each case: rows (category, edit, seed), columns the bit masks 0 .. 2^n - 1.

    v(S) is the score of the case under `method` on S less its score under no intervention; column 0 is zero. For
    `lpips_original`, whose value under no intervention is 0, that is the preservation cost.
    """
    scores = score_table(frame, value)
    noop = scores.xs(NOOP, axis=1, level="method").mean(axis=1)
    names = subset_names(blocks)
    gains = {mask: scores[method, strength, name] - noop for mask, name in enumerate(names) if name}
    return pd.DataFrame({0: 0.0 * noop, **gains})


def subset_settings(blocks: tuple[str, ...], method: str, strength: float) -> list[Setting]:
    """The settings that a dominance table needs besides no intervention."""
    return [Setting(method, strength, name) for name in subset_names(blocks) if name]


def dominance(
    gains: pd.DataFrame, blocks: tuple[str, ...], *, resamples: int, generator: np.random.Generator
) -> Dominance:
    """The effects of each block and the verdict, from `subset_gains` of the cases that count.

    Blocks are ranked by mean Shapley value. The first is the verdict where its own 95 % interval lies above zero, that
    of its lead over the second does too, and there are at least `MIN_EDITS` edits; otherwise it is "not separable".
    """
    num_blocks = len(blocks)
    values_es = edit_means(gains).to_numpy()
    weights_re = bootstrap_weights(len(values_es), resamples, generator)
    shapley_en = values_es @ shapley_weights(num_blocks)
    solo = bootstrap_intervals(values_es @ solo_weights(num_blocks), weights_re)
    left_out = bootstrap_intervals(values_es @ leave_one_out_weights(num_blocks), weights_re)
    shapley = bootstrap_intervals(shapley_en, weights_re)
    effects = {block: BlockEffects(*row) for block, *row in zip(blocks, solo, left_out, shapley, strict=True)}
    if num_blocks == 1:
        return Dominance(effects, NOT_SEPARABLE, None)

    first, second = np.argsort(-shapley_en.mean(axis=0), kind="stable")[:2]
    (lead,) = bootstrap_intervals(shapley_en[:, [first]] - shapley_en[:, [second]], weights_re)
    separable = len(values_es) >= MIN_EDITS and lead.low > 0 and shapley[first].low > 0
    return Dominance(effects, blocks[first] if separable else NOT_SEPARABLE, lead)


def selected_share(
    frame: pd.DataFrame, cases: pd.MultiIndex, setting: Setting, blocks: tuple[str, ...]
) -> dict[str, float | None]:
    """Block -> share of the selected features that lie in it, averaged over the seeds of an edit, then over edits.

    This is the published count. It says where features were selected, not what they do. None where no features are
    recorded.
    """
    rows = frame[(frame[SETTING] == list(setting)).all(axis=1)].set_index(CASE)
    rows = rows[rows.index.isin(cases)]
    counts = pd.DataFrame([feature_counts(cell) for cell in rows["features"]], rows.index, list(blocks)).fillna(0)
    totals = counts.sum(axis=1)
    shares = edit_means(counts[totals > 0].div(totals[totals > 0], axis=0)).mean()
    return {block: None if pd.isna(shares[block]) else float(shares[block]) for block in blocks}
