"""Simulated edits whose true means are known, and how often intervals and tests get them right.

`python tests/simulated.py` prints the figures of docs/statistics.md.
"""

from __future__ import annotations

import numpy as np

from riebench.analysis.frontier import area
from riebench.analysis.statistics import edit_weights, holm, intervals, mean_intervals, sign_flip_p, times_counted

SEEDS = 3  # of the noise, per edit; they share what is particular to the edit


def normal(rng, shape):
    return 0.3 + rng.normal(size=shape) + rng.normal(0, 0.7, (SEEDS, *shape)).mean(axis=0), 0.3


def skewed(rng, shape):
    return rng.gamma(2, 1, shape) + rng.normal(0, 0.7, (SEEDS, *shape)).mean(axis=0), 2.0


def exponential(rng, shape):
    return rng.exponential(1, shape), 1.0


def zero_inflated(rng, shape, share=0.5):
    """Most seeds of some edits do something, those of the others nothing at all."""
    seeds = rng.gamma(2, 1, shape) * rng.gamma(25, 1 / 25, (SEEDS, *shape))
    return (rng.random(shape) < share) * seeds.mean(axis=0), 2 * share


def mostly_zero(rng, shape):
    return zero_inflated(rng, shape, 0.2)


def success(rng, shape, mean=1 / 3):
    """A score of 0 or 1 for each seed, whose chance differs between edits."""
    chances = rng.beta(3 * mean, 3 * (1 - mean), shape)
    return (rng.random((SEEDS, *shape)) < chances).mean(axis=0), mean


def rare_success(rng, shape):
    return success(rng, shape, 0.1)


def ratio_of_means(rng, shape):
    """Gain and cost of each edit, both skewed and correlated, as `efficiency` has them."""
    size = rng.gamma(2, 1, shape)
    gains = 0.05 * size + rng.normal(0, 0.04, shape)
    costs = 0.03 * size * rng.gamma(4, 0.25, shape)
    return (gains, costs), 0.05 / 0.03


def area_under_curve(rng, shape):
    """Gains and costs of three strengths: the gain flattens, the cost does not."""
    talent, price = rng.gamma(4, 0.25, shape), rng.gamma(4, 0.25, shape)
    strengths = np.array([0.5, 1.0, 2.0])[:, None, None]
    gains = 0.1 * (1 - np.exp(-strengths)) * talent + rng.normal(0, 0.02, (3, *shape))
    costs = 0.1 * strengths * price
    mean_gains, mean_costs = 0.1 * (1 - np.exp(-strengths)), 0.1 * strengths
    return (gains, costs), area(mean_costs[:, 0], mean_gains[:, 0], 0.15)[0]


MEANS = (normal, skewed, exponential, zero_inflated, mostly_zero, success, rare_success)
FUNCTIONS = {
    ratio_of_means: lambda gains, costs: gains / costs,
    area_under_curve: lambda gains, costs: area(costs, gains, 0.15),
}


def coverage(simulate, num_edits, repeats=1000, resamples=4000, seed=0):
    """Of the 95 % intervals that are given, the share that holds the truth, None where none is; and the share of
    `repeats` data sets whose interval is withheld."""
    rng = np.random.default_rng([seed, num_edits])
    values, truth = simulate(rng, (num_edits, repeats))
    weights_we = edit_weights(num_edits, resamples, seed)
    if simulate in FUNCTIONS:
        found = []
        for start in range(0, repeats, 100):
            part = [weights_we @ of_each[..., start : start + 100] for of_each in values]
            found += intervals(of_columns(FUNCTIONS[simulate], part), num_edits)
    else:
        found = mean_intervals(values, weights_we)
    given = [interval.low <= truth <= interval.high for interval in found if not interval.withheld]
    return np.mean(given) if given else None, 1 - len(given) / repeats


def of_columns(function, weighed):
    """`[columns, weighings]` of a function of `[weighings, columns]`, or of `[strengths, weighings, columns]`."""
    shape = weighed[0].shape[-2:]
    return np.reshape(function(*(w.reshape(*w.shape[:-2], -1) for w in weighed)), shape).T


def found_in_tables(num_edits, cells=20, correlation=0.5, skew=False, effect=0.0, repeats=1000, seed=0):
    """Of `repeats` tables of correlated cells with the same effect in each, in standard deviations: the share in which
    any cell is found at 5 %, and the share of cells that are; both as `adjusted_p` has it, then with Holm's p alone."""
    rng = np.random.default_rng([seed, num_edits])

    def draw(*shape):
        return rng.exponential(1, shape) - 1 if skew else rng.normal(size=shape)

    found = []
    for _ in range(repeats):
        table = np.sqrt(correlation) * draw(num_edits, 1) + np.sqrt(1 - correlation) * draw(num_edits, cells) + effect
        p_values = sign_flip_p(table, 2048, rng)
        alone, adjusted = holm(p_values) <= 0.05, holm(p_values * times_counted(list(table.T))) <= 0.05
        found.append([adjusted.any(), adjusted.mean(), alone.any(), alone.mean()])
    return np.mean(found, axis=0)


def family_wise_error(num_edits, skew=False, repeats=1000):
    """Share of tables of true nulls in which any cell is found at 5 %."""
    return found_in_tables(num_edits, skew=skew, repeats=repeats)[0]


def main():
    print("coverage of 95 % intervals over 10,000 data sets, in %, and in brackets how many are withheld")
    for simulate in (*MEANS, *FUNCTIONS):
        cells = []
        for num_edits in (6, 10, 12, 60):
            covered, withheld = coverage(simulate, num_edits, 10_000)
            cells.append("withheld" if covered is None else f"{100 * covered:.1f} ({100 * withheld:.1f})")
        print(f"{simulate.__name__:18}", *(f"{cell:>12}" for cell in cells), flush=True)
    print("tables of 20 correlated cells: with a finding, cells found, and both without regard to skewness, in %")
    for num_edits in (12, 60):
        for skew in (False, True):
            for effect in (0, 1):
                repeats = 4000 if num_edits == 12 and not effect else 1000
                found = found_in_tables(num_edits, skew=skew, effect=effect, repeats=repeats)
                kind = f"{num_edits} edits, {'exponential' if skew else 'normal'}, effect {effect}"
                print(f"{kind:32}", *(f"{100 * share:6.1f}" for share in found), flush=True)


if __name__ == "__main__":
    main()
