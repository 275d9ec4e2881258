"""Simulated edits whose true means are known, and how often intervals and tests get them right.

`python tests/simulated.py` prints the figures of docs/statistics.md.
"""

from __future__ import annotations

import numpy as np

from riebench.analysis.frontier import area
from riebench.analysis.statistics import edit_weights, holm, intervals, mean_intervals, sign_flip_p

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
    """Share of `repeats` data sets whose 95 % interval holds the truth."""
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
    return np.mean([interval.low <= truth <= interval.high for interval in found])


def of_columns(function, weighed):
    """`[columns, weighings]` of a function of `[weighings, columns]`, or of `[strengths, weighings, columns]`."""
    shape = weighed[0].shape[-2:]
    return np.reshape(function(*(w.reshape(*w.shape[:-2], -1) for w in weighed)), shape).T


def family_wise_error(num_edits, cells=20, correlation=0.5, skew=False, repeats=1000, seed=0):
    """Share of `repeats` tables of true nulls, with correlated cells, in which Holm rejects any at 5 %."""
    rng = np.random.default_rng([seed, num_edits])

    def draw(*shape):
        return rng.exponential(1, shape) - 1 if skew else rng.normal(size=shape)

    rejected = []
    for _ in range(repeats):
        shared = draw(num_edits, 1)
        table = np.sqrt(correlation) * shared + np.sqrt(1 - correlation) * draw(num_edits, cells)
        rejected.append(holm(sign_flip_p(table, 2048, rng)).min() <= 0.05)
    return np.mean(rejected)


def main():
    print("coverage of 95 % intervals over 10,000 data sets, in %")
    for simulate in (*MEANS, *FUNCTIONS):
        found = [100 * coverage(simulate, n, 10_000, 4000) for n in (6, 12, 60)]
        print(f"{simulate.__name__:18}", *(f"{share:6.1f}" for share in found))
    print("family-wise error of 20 correlated nulls over 1,000 tables, in %")
    for skew in (False, True):
        found = [100 * family_wise_error(n, skew=skew) for n in (12, 60)]
        print("exponential" if skew else "normal     ", *(f"{share:6.1f}" for share in found))


if __name__ == "__main__":
    main()
