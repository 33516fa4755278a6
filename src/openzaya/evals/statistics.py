"""Uncertainty over problems: bootstrap intervals, and paired tests by flipping signs. Pure functions, seeded.

The problems are the sample; candidates of one problem depend on each other, so a problem counts by its mean. With
`strata` (the benchmark of each problem) a mean is the mean over strata of their means, and problems are drawn anew
within each; without, all problems are one population.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_CHUNK = 2_000_000
"""Random numbers held at once."""
_EXACT_FLIPS = 14
"""With no more differences than this, all sign patterns are enumerated."""

Values = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean and the limits of its 95 % interval."""

    value: float
    low: float
    high: float


def problem_weights(count: int, strata: NDArray[np.intp] | None = None) -> Values:
    """What each of `count` problems weighs in the mean; they add up to 1. Raises ValueError where there is none."""
    if count == 0:
        raise ValueError("there is no problem to take a mean over; give at least one")
    if strata is None:
        return np.full(count, 1.0 / count)
    _names, inverse, sizes = np.unique(strata, return_inverse=True, return_counts=True)
    return 1.0 / (len(sizes) * sizes[inverse].astype(np.float64))


def bootstrap_means(values: Values, *, strata: NDArray[np.intp] | None = None, resamples: int, seed: int) -> Values:
    """Means of `resamples` bootstrap samples: (problems, columns) -> (resamples, columns).

    All columns are taken from the same drawn problems, so that the difference of two is a paired one.
    """
    count = len(values)
    weighted = values * problem_weights(count, strata)[:, None]
    groups = [np.arange(count)] if strata is None else [np.flatnonzero(strata == name) for name in np.unique(strata)]
    generator = np.random.default_rng(seed)
    means = np.empty((resamples, values.shape[1]))
    step = max(1, _CHUNK // count)
    for start in range(0, resamples, step):
        stop = min(start + step, resamples)
        drawn = np.empty((stop - start, count))
        for members in groups:
            even = np.full(len(members), 1.0 / len(members))
            drawn[:, members] = generator.multinomial(len(members), even, size=stop - start)
        means[start:stop] = drawn @ weighted
    return means


def percentile_interval(value: float, means: Values) -> Interval:
    """The middle 95 % of bootstrap means around the mean that was measured."""
    low, high = np.quantile(means, [0.025, 0.975])
    return Interval(value, float(low), float(high))


def sign_flip_p_value(
    differences: Values, *, strata: NDArray[np.intp] | None = None, resamples: int, seed: int
) -> float:
    """Two-sided p-value of a paired permutation test: how often random signs give a mean difference as large.

    Under the hypothesis that the two arms do not differ, either sign of each problem's difference was as likely. All
    patterns are enumerated for up to 14 differences that are not zero, otherwise `resamples` are drawn.
    """
    terms = differences * problem_weights(len(differences), strata)
    terms = terms[terms != 0]
    count = len(terms)
    # As large up to rounding: the same terms added in another order must not count as smaller.
    observed = abs(float(terms.sum())) - 1e-12
    if count <= _EXACT_FLIPS:
        patterns = (np.arange(2**count)[:, None] >> np.arange(count)) & 1
        return float(np.mean(np.abs((1.0 - 2.0 * patterns) @ terms) >= observed))
    generator = np.random.default_rng(seed)
    reached = 0
    step = max(1, _CHUNK // count)
    for start in range(0, resamples, step):
        signs = 1.0 - 2.0 * generator.integers(0, 2, size=(min(step, resamples - start), count), dtype=np.int8)
        reached += int(np.count_nonzero(np.abs(signs @ terms) >= observed))
    return (reached + 1) / (resamples + 1)
