"""Scores of made-up runs in which the truth about the blocks is known."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pandas as pd

from riebench.analysis.coalitions import needed_subsets
from riebench.core.scores import COLUMNS, SCORES

BLOCKS = ("down.2.1", "mid.0", "up.0.0", "up.0.1")


def make_row(edit, category, seed, method, blocks="", strength=1.0, **cells):
    row = {name: "" if dtype is str else dtype(0) for name, dtype in COLUMNS.items()}
    row |= {score.name: 0.0 for score in SCORES}
    row |= {"edit": edit, "category": category, "seed": seed, "method": method, "blocks": blocks}
    row |= {"strength": strength, "backbone": "tinyworld-turbo@1", "steps": 1, "status": "ok", "mode": "strict"}
    return row | cells


def fail(row, reason):
    return row | {"status": "failed", "reason": reason} | {score.name: math.nan for score in SCORES}


def make_scores(worth, *, num_edits=12, seeds=(0, 1), noise=0.02, blocks=BLOCKS, generator_seed=0):
    """Scores of a run in which intervening on the set S in `category` gains worth[category](S), plus noise."""
    rng = np.random.default_rng(generator_seed)
    rows = []

    def add(case, base, method, names, gain, cost, **cells):
        scores = {"clip_text_edited": base + gain, "lpips_original": cost}
        rows.append(make_row(*case, method, names, **scores, **cells))

    for category, value in worth.items():
        for edit, seed in itertools.product(range(num_edits), seeds):
            at = (f"{category}-{edit}", category, seed), rng.normal(0.2, 0.05)  # the level, which pairing takes away
            add(*at, "noop", "", 0.0, 0.0, strength=0.0)
            add(*at, "oracle-prompt", "", 0.1, 0.5)
            add(*at, "dense", "+".join(blocks), 0.08 + rng.normal(0, noise), 0.3)
            for chosen in needed_subsets(blocks):
                features = json.dumps({block: 10 * (i + 1) for i, block in enumerate(blocks) if block in chosen})
                gain = value(frozenset(chosen)) + rng.normal(0, noise)
                add(*at, "sae", "+".join(chosen), gain, 0.1 * len(chosen), features=features)
    return pd.DataFrame(rows)


PLANTED = {
    "alone": lambda s: 0.10 * ("up.0.0" in s),
    "together": lambda s: 0.10 * ({"down.2.1", "up.0.1"} <= s),
    "nothing": lambda s: 0.0,
}
