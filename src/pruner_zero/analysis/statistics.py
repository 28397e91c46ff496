"""Rank statistics with their uncertainty: functions of arrays, an explicit generator, no model.

All intervals are of 95 % and take the observations as independent draws.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
# From pairs (x, y) and how often each was drawn (pairs, resamples): one value a resample.
Resampled = Callable[[Array, Array, Array], Array]

RESAMPLES = 500
DRAWS = 2000
# Resampling fewer pairs gives intervals that are far too narrow.
FEWEST_PAIRS = 10

_TAILS = (0.025, 0.975)
_ROWS = 512


@dataclass(frozen=True)
class Estimate:
    """A statistic and its 95 % interval; nan where it is not defined or the data is too little."""

    value: float = math.nan
    low: float = math.nan
    high: float = math.nan


def ranks(values: ArrayLike) -> Array:
    """Ranks from 1, equal values sharing the mean of theirs."""
    array = _array(values)
    return _mean_ranks(array, np.ones((len(array), 1)))[:, 0]


def spearman(x: ArrayLike, y: ArrayLike) -> float:
    """Spearman's ρ with ties: Pearson's correlation of the mean ranks; nan where one is constant.

    Raises ValueError where x and y differ in length. Source: Spearman 1904.
    """
    return float(spearmans(*_pairs(x, y))[0])


def kendall(x: ArrayLike, y: ArrayLike) -> float:
    """Kendall's τ-b, which leaves ties out of the denominator; nan where one is constant.

    Raises ValueError where x and y differ in length. Source: Kendall 1945.
    """
    return float(kendalls(*_pairs(x, y))[0])


def spearmans(x: Array, y: Array, counts: Array) -> Array:
    """`spearman` of every column of `counts`, which says how often each pair was drawn."""
    total = counts.sum(axis=0)
    centred = [_mean_ranks(values, counts) - (total + 1) / 2 for values in (x, y)]
    products = [(counts * a * b).sum(axis=0) for a, b in _three(*centred)]
    return _correlation(*products)


def kendalls(x: Array, y: Array, counts: Array) -> Array:
    """`kendall` of every column of `counts`, which says how often each pair was drawn."""
    total = counts.sum(axis=0)
    untied = [total**2 - (_group_sums(values, counts) ** 2).sum(axis=0) for values in (x, y)]
    concordance = np.zeros(counts.shape[1])
    # Whole numbers below 2^24 are exact in single precision, where matrix products are faster.
    drawn = counts.astype(np.float32)
    for start in range(0, len(x), _ROWS):
        rows = slice(start, start + _ROWS)
        signs = np.sign(np.subtract.outer(x[rows], x)) * np.sign(np.subtract.outer(y[rows], y))
        concordance += (counts[rows] * (signs.astype(np.float32) @ drawn)).sum(axis=0)
    return _correlation(untied[0], concordance, untied[1])


def bootstrap(
    statistic: Resampled,
    x: ArrayLike,
    y: ArrayLike,
    generator: np.random.Generator,
    resamples: int = RESAMPLES,
) -> Estimate:
    """`spearmans` or `kendalls` of the pairs, with the percentile interval of resampled pairs.

    There is no interval for fewer than 10 pairs or where x or y is constant; resamples in
    which one is constant are left out. Source: Efron 1979, the percentile bootstrap.
    """
    x, y, once = _pairs(x, y)
    value = float(statistic(x, y, once)[0])
    if len(x) < FEWEST_PAIRS or math.isnan(value):
        return Estimate(value)
    drawn = generator.integers(len(x), size=(resamples, len(x)))
    places = drawn + len(x) * np.arange(resamples)[:, np.newaxis]
    counts = np.bincount(places.ravel(), minlength=places.size).reshape(places.shape)
    drawn_counts = np.ascontiguousarray(counts.T, dtype=np.float64)
    return _estimate(value, statistic(x, y, drawn_counts))


def hypergeometric_p(chosen_with: int, chosen: int, all_with: int, total: int) -> float:
    """How surprising it is that `chosen_with` of the `chosen` have what `all_with` of `total` have.

    Twice the smaller tail of the hypergeometric distribution, at most 1: the chance, were
    the chosen drawn blindly, of a count as far out on its side. Computed in whole numbers.
    Raises ValueError for impossible counts. Source: Fisher's exact test.
    """
    least, most = max(0, chosen + all_with - total), min(chosen, all_with)
    if not (0 <= chosen <= total and 0 <= all_with <= total and least <= chosen_with <= most):
        raise ValueError(f"{chosen_with} of {chosen} chosen from {all_with} of {total}")
    ways = math.comb(all_with, least) * math.comb(total - all_with, chosen - least)
    below = above = everything = 0
    for count in range(least, most + 1):
        everything += ways
        below += ways if count <= chosen_with else 0
        above += ways if count >= chosen_with else 0
        ways = ways * (all_with - count) * (chosen - count)
        ways //= (count + 1) * (total - all_with - chosen + count + 1) or 1
    return min(1.0, 2 * min(below, above) / everything)


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values adjusted for being read together, in the same order. Source: Holm 1979."""
    adjusted, worst = [0.0] * len(p_values), 0.0
    for position, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        worst = max(worst, min(1.0, (len(p_values) - position) * p_values[index]))
        adjusted[index] = worst
    return adjusted


def ratios(chosen: ArrayLike, others: ArrayLike) -> Array:
    """Each feature's share among the chosen over its share among all; nan where nobody has it.

    chosen, others: 0 or 1 of (observations, features).
    """
    chosen, others = _array(chosen), _array(others)
    everyone = np.concatenate([chosen, others])
    # Of counts, so that equal shares give exactly 1.
    best, total = chosen.sum(axis=0) * len(everyone), everyone.sum(axis=0) * len(chosen)
    found: Array = np.divide(best, total, out=np.full(len(total), np.nan), where=total > 0)
    return found


def ratio_draws(
    chosen: ArrayLike,
    others: ArrayLike,
    generator: np.random.Generator,
    draws: int = DRAWS,
) -> Array:
    """(draws, features): what `ratios` could be as well, by a Bayesian bootstrap of each group.

    Each group is given half an observation with all features and half a one with none: for
    one feature its share is then drawn from Jeffreys' posterior, which does not collapse where
    all or none have it. Features are drawn together, so that functions of several of them
    have intervals. Source: Rubin 1981, the Bayesian bootstrap; Jeffreys' prior.
    """
    groups = [_array(chosen), _array(others)]
    shares = []
    for group in groups:
        weights = generator.standard_exponential((draws, len(group)))
        having, lacking = generator.standard_gamma(0.5, (2, draws, 1))
        total = weights.sum(axis=1, keepdims=True) + having + lacking
        shares.append((weights @ group + having) / total)
    part = len(groups[0]) / max(1, len(groups[0]) + len(groups[1]))
    ratio: Array = shares[0] / (part * shares[0] + (1 - part) * shares[1])
    return ratio


def interval(value: float, draws: Array) -> Estimate:
    """The value with the 95 % interval of its draws, widened to hold the value."""
    return _estimate(value, draws)


def _estimate(value: float, draws: Array) -> Estimate:
    finite = draws[np.isfinite(draws)]
    if not len(finite):
        return Estimate(value)
    low, high = (float(one) for one in np.quantile(finite, _TAILS))
    return Estimate(value, min(low, value), max(high, value))


def _array(values: ArrayLike) -> Array:
    return np.asarray(values, dtype=np.float64)


def _pairs(x: ArrayLike, y: ArrayLike) -> tuple[Array, Array, Array]:
    x, y = _array(x), _array(y)
    if x.shape != y.shape:
        raise ValueError(f"{len(x)} values of x and {len(y)} of y are no pairs")
    return x, y, np.ones((len(x), 1))


def _three(x: Array, y: Array) -> tuple[tuple[Array, Array], ...]:
    return (x, x), (x, y), (y, y)


def _correlation(xx: Array, xy: Array, yy: Array) -> Array:
    spread = np.sqrt(xx * yy)
    found = np.divide(xy, spread, out=np.full(len(spread), np.nan), where=spread > 0)
    clipped: Array = np.clip(found, -1, 1)
    return clipped


def _group_sums(values: Array, counts: Array) -> Array:
    """How often each distinct value was drawn, in ascending order of the values."""
    if not len(values):
        return np.zeros((0, counts.shape[1]))
    order = np.argsort(values, kind="stable")
    starts = np.flatnonzero(np.diff(values[order], prepend=np.nan))
    sums: Array = np.add.reduceat(counts[order], starts, axis=0)
    return sums


def _mean_ranks(values: Array, counts: Array) -> Array:
    """The mean rank of each value in every column's sample."""
    sums = _group_sums(values, counts)
    groups = np.unique(values, return_inverse=True)[1]
    found: Array = (np.cumsum(sums, axis=0) - (sums - 1) / 2)[groups]
    return found
