"""This says which block matters: solo, leave-one-out and Shapley effects over subsets of the blocks, and the verdict.

v(S) is the value of intervening on the blocks S less that of intervening on none, so v(empty) = 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd

from riebench.analysis.coalitions import Coalitions, coalitions_of, subset_mask
from riebench.analysis.frames import feature_counts
from riebench.analysis.statistics import MIN_EDITS, Interval, deviation_of, edit_means, edits_needed, intervals, sides
from riebench.analysis.verdicts import MOST_EDITS, SHARED, TOO_FEW, verdict_of, withheld_verdict
from riebench.core.scores import CASE, LEAST_COST, NOOP, SETTING, Setting

LEVEL = 0.95  # of every interval

#: The scores whose gain over no intervention is shared out among the blocks, where a run has them.
GAIN, COST = "clip_text_edited", "lpips_original"
SCORED = (GAIN, "oracle_success", COST)
#: The value that is no score, see `efficiency`.
EFFICIENCY = "efficiency"


@dataclass(frozen=True)
class Game:
    """A method at one strength, run on enough subsets of the blocks to tell their effects."""

    method: str
    strength: float
    window: str
    """Steps that were intervened on; "all" also where the rows do not agree."""
    settings: Mapping[int, Setting]
    """Bit mask of a non-empty subset -> the setting that it was run under."""
    coalitions: Coalitions

    @property
    def whole(self) -> Setting:
        """Returns the setting on all blocks."""
        return self.settings[self.coalitions.masks[-1]]


@dataclass(frozen=True)
class BlockEffects:
    solo: Interval
    leave_one_out: Interval
    shapley: Interval


@dataclass(frozen=True)
class Dominance:
    effects: dict[str, BlockEffects]
    verdict: str
    """A block's name, or why none is named, as `verdicts.verdict_of` says."""

    lead: Interval | None
    """Shapley value of the first block less that of the second; None where there is one block."""

    edits_needed: int | None
    """The number of edits with which there would be a verdict, where more would do; None also where that is beyond
    `verdicts.MOST_EDITS`."""


def games_of(frame: pd.DataFrame, blocks: Sequence[str], first: Sequence[str] = ()) -> list[Game]:
    """Returns every method and strength of the frame that was run on enough subsets: the methods `first` names in that
    order, then the others in the frame's, each from the strength nearest 1 on."""
    subsets: dict[tuple[str, float], dict[int, Setting]] = {}
    for setting in map(Setting._make, frame[SETTING].drop_duplicates().itertuples(index=False, name=None)):
        mask = subset_mask(blocks, setting.blocks)
        if mask:
            subsets.setdefault((setting.method, setting.strength), {})[mask] = setting
    games = []
    for (method, strength), settings in subsets.items():
        coalitions = coalitions_of(len(blocks), settings.keys())
        if coalitions is not None:
            windows = frame.loc[(frame["method"] == method) & (frame["strength"] == strength), "window"].unique()
            window = str(windows[0]) if len(windows) == 1 and windows[0] else "all"
            games.append(Game(method, strength, window, settings, coalitions))
    order = [*first, *(game.method for game in games)]
    return sorted(games, key=lambda game: (order.index(game.method), abs(game.strength - 1), game.strength))


def subset_gains(scores: pd.DataFrame, game: Game) -> pd.DataFrame:
    """Returns v(S) of each case: rows (category, edit, seed), columns the masks of `game.coalitions`; cases without a
    score under some subset are left out.

    scores: one of `score_tables`. v(S) is the score of the case under the game's method on S less its score under no
    intervention. For `lpips_original`, which is 0 under no intervention, that is the preservation cost.
    """
    noop = scores.xs(NOOP, axis=1, level="method").mean(axis=1)
    gains = {mask: scores[setting] - noop for mask, setting in game.settings.items()}
    return pd.DataFrame({0: 0.0 * noop, **gains})[list(game.coalitions.masks)].dropna()


def efficiency(gains: np.ndarray, costs: np.ndarray) -> np.ndarray:
    """Returns the mean edit gain for a unit of mean preservation cost; 0 where the cost is 0, as on the empty subset.

    A ratio of means, not a mean of ratios: a case that hardly changes has an LPIPS near 0, and its own ratio explodes.
    So does that of means, where a subset of the blocks hardly changes any case: `too_small` says which.
    """
    return np.divide(gains, costs, out=np.zeros_like(gains), where=costs > 0)


def too_small(costs_m: np.ndarray) -> int:
    """Returns how many subsets but the empty one have a mean preservation cost below `LEAST_COST`, `[masks]`."""
    return int((costs_m[1:] < LEAST_COST).sum())


def dominance(values_wm: np.ndarray, coalitions: Coalitions, blocks: Sequence[str], num_edits: int) -> Dominance:
    """Returns the effects of each block and the verdict, from v of each subset under all rows of `edit_weights`,
    `[weighings, masks]`.

    Blocks are ranked by Shapley value. The first is the verdict where its own value and its lead over the second lie
    above zero at 95 %, as `sides` says; otherwise it says why not. Of a cost the verdict thus names the block that
    costs most.
    """
    of_each = [values_wm @ weights for weights in (coalitions.solo, coalitions.leave_one_out, coalitions.shapley)]
    found = intervals(np.hstack(of_each).T, num_edits)
    solo, left_out, shapley = (found[start : start + len(blocks)] for start in range(0, len(found), len(blocks)))
    effects = {block: BlockEffects(*row) for block, *row in zip(blocks, solo, left_out, shapley, strict=True)}
    shapley_wb = of_each[-1]
    own = sides(shapley, shapley_wb.T, num_edits)
    all_at_once = 1 - (1 - LEVEL) / len(blocks)
    wide = sides(intervals(shapley_wb.T, num_edits, all_at_once), shapley_wb.T, num_edits, all_at_once)
    if len(blocks) == 1:
        return Dominance(effects, verdict_of(own, None, wide, 0, num_edits), None, None)

    first, second = np.argsort(-shapley_wb[0], kind="stable")[:2]
    lead_w = shapley_wb[:, first] - shapley_wb[:, second]
    (lead,) = intervals(lead_w[None], num_edits)
    (ahead,) = sides([lead], lead_w[None], num_edits)
    verdict = verdict_of(own, ahead, wide, first, num_edits) or blocks[first]
    decisive = {TOO_FEW: (lead_w, shapley_wb[:, second]), SHARED: (lead_w,)}.get(verdict, ())
    return Dominance(effects, verdict, lead, _edits_needed(decisive, num_edits))


def _edits_needed(decisive: Sequence[np.ndarray], num_edits: int) -> int | None:
    """Returns the number of edits with which the first of some statistics is likely to differ from zero.

    decisive: each under the rows of `edit_weights`, as of `edits_needed`; with less than `MIN_EDITS` edits that number
    comes first. None where there is none, or it is beyond `MOST_EDITS`.
    """
    if not decisive:
        return None
    if num_edits < MIN_EDITS:
        return MIN_EDITS
    needed = min(edits_needed(float(of_w[0]), deviation_of(of_w, num_edits)) for of_w in decisive)
    return None if needed > MOST_EDITS else max(num_edits + 1, math.ceil(needed))


def selected_shares(frame: pd.DataFrame, setting: Setting, blocks: Sequence[str]) -> pd.DataFrame:
    """Returns the share of the selected features that lie in each block, the published count: rows (category, edit,
    seed), columns blocks. It says where features were selected, not what they do. Cases without recorded features are
    left out."""
    rows = frame[(frame[SETTING] == list(setting)).all(axis=1)].set_index(CASE)
    counts = pd.DataFrame([feature_counts(cell) for cell in rows["features"]], rows.index, list(blocks)).fillna(0)
    totals = counts.sum(axis=1)
    return counts[totals > 0].div(totals[totals > 0], axis=0)


def dominance_table(
    frame: pd.DataFrame,
    tables: Mapping[str, pd.DataFrame],
    game: Game,
    blocks: Sequence[str],
    groups: Mapping[str, pd.MultiIndex],
    edit_weights: Callable[[int], np.ndarray],
) -> dict[str, dict]:
    """Returns the name of each group of cases -> `edits`, `cases`, and by value `effects`, the verdict (`dominant`),
    the `lead`, and the edits that a verdict needs (`edits_needed`).

    tables: of `score_tables`. edit_weights: number of edits -> `statistics.edit_weights`. The
    values are those of `SCORED` that there are, and `efficiency`. A value that no case of a group has is not there;
    efficiency that some subset costs too little for has a verdict that says so, and no effects.
    """
    scored = [name for name in SCORED if name in tables and frame[name].notna().any()]
    gains = {name: subset_gains(tables[name], game) for name in scored}
    shares = selected_shares(frame, game.whole, blocks)
    return {name: _effects(gains, shares, cases, game, blocks, edit_weights) for name, cases in groups.items()}


def _effects(
    gains: Mapping[str, pd.DataFrame],
    shares: pd.DataFrame,
    cases: pd.MultiIndex,
    game: Game,
    blocks: Sequence[str],
    edit_weights: Callable[[int], np.ndarray],
) -> dict:
    means = {value: edit_means(table[table.index.isin(cases)]).to_numpy() for value, table in gains.items()}
    values = {value: edit_weights(len(values_em)) @ values_em for value, values_em in means.items() if len(values_em)}
    small = too_small(values[COST][0]) if values else 0
    if values and not small:
        values[EFFICIENCY] = efficiency(values[GAIN], values[COST])
    of_edits = edit_means(shares[shares.index.isin(cases)]).mean()
    share = {block: None if pd.isna(of_edits[block]) else float(of_edits[block]) for block in blocks}
    row: dict = {"edits": cases.droplevel("seed").nunique(), "cases": len(cases)}
    row |= {"effects": {}, "dominant": {}, "lead": {}, "edits_needed": {}}
    for value, values_wm in values.items():
        result = dominance(values_wm, game.coalitions, blocks, len(means.get(value, means[GAIN])))
        row["effects"][value] = {block: {"share": share[block], **asdict(e)} for block, e in result.effects.items()}
        row["dominant"][value] = result.verdict
        row["lead"][value] = result.lead and asdict(result.lead)
        row["edits_needed"][value] = result.edits_needed
    if small:
        row["dominant"][EFFICIENCY] = withheld_verdict(small, len(game.settings))
    return row
