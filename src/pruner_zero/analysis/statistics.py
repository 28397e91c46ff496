"""Rank statistics with 95 % intervals: functions of arrays with an explicit generator.

All intervals take the observations as independent draws.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

Array = NDArray[np.float64]

DRAWS = 2000
# With fewer pairs, intervals are far too narrow.
FEWEST_PAIRS = 10


@dataclass(frozen=True)
class Estimate:
    """A statistic and its 95 % interval; nan where it is undefined or the data is too little."""

    value: float = math.nan
    low: float = math.nan
    high: float = math.nan

    @property
    def cells(self) -> tuple[str, str]:
        """The value and the interval as cells of a table, empty where they are not defined."""
        if math.isnan(self.value):
            return "", ""
        interval = "" if math.isnan(self.low) else f"{self.low:.2f} … {self.high:.2f}"
        return f"{self.value:.2f}", interval


def rank_correlation(x: ArrayLike, y: ArrayLike) -> Estimate:
    """Kendall's τ-b of the pairs of x and y, with its interval.

    nan where x or y is constant; no interval for fewer than 10 pairs. Sources: Kendall 1945; the
    standard error is that of a U-statistic (Hoeffding 1948), the interval that of Fisher's z, which
    stays within -1 … 1.
    """
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if not len(x) or np.all(x == x[0]) or np.all(y == y[0]):
        return Estimate()
    # For each pair: the share of the others in the same order, and those not tied in x and in y.
    shares = np.empty((len(x), 3))
    for index in range(len(x)):
        a, b = np.sign(x - x[index]), np.sign(y - y[index])
        shares[index] = np.mean(a * b), np.mean(a * a), np.mean(b * b)
    concordance, untied_x, untied_y = shares.mean(axis=0)
    tau = float(concordance / np.sqrt(untied_x * untied_y))
    if len(x) < FEWEST_PAIRS or abs(tau) > 1 - 1e-9:
        return Estimate(tau) if len(x) < FEWEST_PAIRS else Estimate(tau, tau, tau)
    # How much each pair moves τ: the derivative of the quotient by its three parts.
    parts = shares / (np.sqrt(untied_x * untied_y), untied_x, untied_y)
    influence = 2 * (parts[:, 0] - tau / 2 * (parts[:, 1] + parts[:, 2]))
    error = float(influence.std(ddof=1)) / math.sqrt(len(x)) / (1 - tau**2)
    width = float(stats.t.ppf(0.975, len(x) - 2)) * error
    low, high = np.tanh(np.arctanh(tau) + np.array([-width, width]))
    return Estimate(tau, float(low), float(high))


def ratios(chosen: Array, others: Array) -> Array:
    """Each feature's share among the chosen over its share among all; nan where nobody has it.

    chosen, others: 0 or 1 of (observations, features).
    """
    everyone = np.concatenate([chosen, others])
    # Computed from counts, so that equal shares give exactly 1.
    best, total = chosen.sum(axis=0) * len(everyone), everyone.sum(axis=0) * len(chosen)
    quotients: Array = np.divide(best, total, out=np.full(len(total), np.nan), where=total > 0)
    return quotients


def ratio_draws(chosen: Array, others: Array, generator: np.random.Generator) -> Array:
    """Draws of (2000, features) from the distribution of `ratios`, by a Bayesian bootstrap.

    Each group gets half an observation with all features and half of another with none: the share
    of a feature is then drawn from Jeffreys' posterior, which does not collapse where all or none
    have it. Features are drawn together, so that functions of several of them have intervals.
    Source: Rubin 1981, the Bayesian bootstrap; Jeffreys' prior.
    """
    shares = []
    for group in (chosen, others):
        weights = generator.standard_exponential((DRAWS, len(group)))
        having, lacking = generator.standard_gamma(0.5, (2, DRAWS, 1))
        total = weights.sum(axis=1, keepdims=True) + having + lacking
        shares.append((weights @ group + having) / total)
    part = len(chosen) / max(1, len(chosen) + len(others))
    ratio: Array = shares[0] / (part * shares[0] + (1 - part) * shares[1])
    return ratio


def interval(value: float, draws: Array) -> Estimate:
    """The value with the 95 % interval of its finite draws, widened to hold the value."""
    finite = draws[np.isfinite(draws)]
    if not len(finite):
        return Estimate(value)
    low, high = (float(bound) for bound in np.quantile(finite, (0.025, 0.975)))
    return Estimate(value, min(low, value), max(high, value))
