"""This says which subsets of the blocks are to be run, and how the effects of each block are read from their values.

A subset is a bit mask: bit i is set where block i is intervened on. v(S) is the value of intervening on S, and
v(empty) = 0. Every effect is linear in v, so it is a matrix of weights from subsets to blocks.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

#: Up to so many blocks all subsets are run, and Shapley values are exact.
EXACT_BLOCKS = 8
#: Beyond, the subsets of so many sampled orders: with 9 blocks about as many as 8 blocks have.
ORDERS = 32


@dataclass(frozen=True)
class Coalitions:
    """Subsets that were run, and the weights that their values have in the effects of each block."""

    masks: tuple[int, ...]
    """Rising: the first is the empty subset, the last all blocks."""
    estimator: Literal["exact", "sampled"]
    """How the Shapley values are had. The other two effects are exact in any case."""
    solo: np.ndarray
    """`[masks, blocks]`: v({i}) - v(empty)."""
    leave_one_out: np.ndarray
    """`[masks, blocks]`: v(all) - v(all but i)."""
    shapley: np.ndarray
    """`[masks, blocks]`, see `shapley_weights`."""


def subset_name(blocks: Sequence[str], mask: int) -> str:
    """Returns the `blocks` cell of a subset: its blocks joined by "+" in the given order, "" for the empty one."""
    return "+".join(block for i, block in enumerate(blocks) if mask >> i & 1)


def subset_names(blocks: Sequence[str]) -> list[str]:
    """Returns `subset_name` of all 2^n subsets, by bit mask."""
    return [subset_name(blocks, mask) for mask in range(1 << len(blocks))]


def subset_mask(blocks: Sequence[str], name: str) -> int | None:
    """Returns the bit mask of a `blocks` cell; None where it names a block that is not among `blocks`."""
    chosen = name.split("+") if name else []
    return sum(1 << blocks.index(block) for block in chosen) if set(chosen) <= set(blocks) else None


def sampled_orders(blocks: Sequence[str], count: int, seed: int) -> list[tuple[str, ...]]:
    """Returns `count` random orders of the blocks, every second one the reverse of the one before it.

    Antithetic permutations: Mitchell, Cooper, Frank and Holmes, "Sampling Permutations for Shapley Value Estimation",
    JMLR 2022, section 3.
    """
    generator = random.Random(seed)
    drawn = [tuple(generator.sample(list(blocks), len(blocks))) for _ in range((count + 1) // 2)]
    return [order for one in drawn for order in (one, one[::-1])][:count]


def needed_subsets(blocks: Sequence[str], seed: int = 0, orders: int = ORDERS) -> list[tuple[str, ...]]:
    """Returns the non-empty subsets that a method is run on so that its effects can be told: small ones first, then by
    block.

    All of them to `EXACT_BLOCKS` blocks; beyond, the prefixes of `sampled_orders(blocks, orders, seed)`, every block
    alone and all blocks but one. Blocks keep their order inside a subset.
    """
    blocks = tuple(blocks)
    if len(blocks) <= EXACT_BLOCKS:
        return [subset for size in range(1, len(blocks) + 1) for subset in itertools.combinations(blocks, size)]
    places = range(len(blocks))
    chosen = {frozenset([i]) for i in places} | {frozenset(places) - {i} for i in places} | {frozenset(places)}
    for order in sampled_orders(blocks, orders, seed):
        chosen |= {frozenset(map(blocks.index, order[:size])) for size in range(1, len(blocks))}
    ordered = sorted((len(subset), sorted(subset)) for subset in chosen)
    return [tuple(blocks[i] for i in subset) for _, subset in ordered]


def coalitions_of(num_blocks: int, masks: Collection[int]) -> Coalitions | None:
    """Returns what can be told from the values of these subsets, the empty one being known; None where they do not
    suffice.

    To `EXACT_BLOCKS` blocks all subsets are needed. Beyond, those that `needed_subsets` names for some seed: others,
    chosen by hand, would give biased Shapley values.
    """
    every = (1 << num_blocks) - 1
    known = sorted({0, *masks})
    ends = {1 << i for i in range(num_blocks)} | {every ^ 1 << i for i in range(num_blocks)} | {every}
    if num_blocks == 0 or known[-1] > every or not ends <= set(known):
        return None
    if len(known) < every + 1 and (num_blocks <= EXACT_BLOCKS or not _has_chain(known, num_blocks)):
        return None
    place = {mask: row for row, mask in enumerate(known)}
    solo = np.zeros((len(known), num_blocks))
    leave_one_out = np.zeros((len(known), num_blocks))
    for i in range(num_blocks):
        solo[place[1 << i], i] += 1
        solo[place[0], i] -= 1
        leave_one_out[place[every], i] += 1
        leave_one_out[place[every ^ 1 << i], i] -= 1
    estimator: Literal["exact", "sampled"] = "exact" if len(known) == every + 1 else "sampled"
    return Coalitions(tuple(known), estimator, solo, leave_one_out, shapley_weights(num_blocks, known))


def shapley_weights(num_blocks: int, masks: Sequence[int]) -> np.ndarray:
    """Returns `[masks, blocks]`: the mean of v(S with i) - v(S) over all chains from the empty subset to all blocks
    through the given subsets, a chain adding one block at a time.

    masks: rising, with the empty subset, all blocks, and a chain between them. With all 2^n of them the chains are the
    n! orders of the blocks, so this is the Shapley value (Shapley, "A Value for n-Person Games", 1953). With the
    prefixes of random orders it is an unbiased estimate of it: orders treat all blocks alike, so the weight that a step
    from S to S with i has in expectation depends on the size of S alone, and those of one size sum to one, a chain
    having one such step. Chains that cross from one order to another lower the variance. The values of all blocks sum
    to v(all) - v(empty), as they do on every chain.
    """
    place = {mask: row for row, mask in enumerate(masks)}
    below, above = _chains(num_blocks, masks)
    weights = np.zeros((len(masks), num_blocks))
    for mask in masks:
        for i in range(num_blocks):
            larger = mask | 1 << i
            if larger != mask and larger in place:
                share = below[mask] * above[larger] / below[masks[-1]]
                weights[place[larger], i] += share
                weights[place[mask], i] -= share
    return weights


def _chains(num_blocks: int, masks: Sequence[int]) -> tuple[dict[int, int], dict[int, int]]:
    """Returns for each subset how many chains lead to it from the first, and from it to the last."""
    below, above = {masks[0]: 1}, {masks[-1]: 1}
    for mask in masks[1:]:
        below[mask] = sum(below.get(mask ^ 1 << i, 0) for i in range(num_blocks) if mask >> i & 1)
    for mask in reversed(masks[:-1]):
        above[mask] = sum(above.get(mask | 1 << i, 0) for i in range(num_blocks) if not mask >> i & 1)
    return below, above


def _has_chain(masks: Sequence[int], num_blocks: int) -> bool:
    return _chains(num_blocks, masks)[0][masks[-1]] > 0
