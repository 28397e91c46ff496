"""Corrections of the closed-form error, learned from the losses of the run."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from pruner_zero.evolution.archive import Record
from pruner_zero.evolution.candidate import Candidate, excess

# How many pairs of loss and closed-form error the line is fitted to, at least and at most.
_PAIRS, _MEMORY = 8, 64
# How much the closed form rises per nat of loss, where the run has too few pairs; half of it is
# the least slope. Measured in benchmarks/fitness.md over all comparison groups.
_SLOPE = 2.0
# The share of the correction of a candidate that its children inherit.
_INHERITED = 0.7


class Surrogate:
    """The expected closed-form error of candidates, learned from `records`; lower is better.

    - A candidate that ran on windows is expected to have the error on the line (`line`: slope and
      intercept) through the losses and errors of all candidates that ran, at its loss.
    - Any other candidate is expected to have its closed-form error, plus 0.7 times the mean
      correction of its parents. The correction of a candidate is the difference between its
      expected error and its closed-form error.
    - `trust` is an upper bound of Kendall's τ between errors and losses, in [0, 1]. Where it is
      below 1, closed-form errors up to the highest that ran are first moved to their median by the
      factor `trust`.
    - `further`: for each candidate that ran on both, the loss on all windows minus the loss on few,
      in nats.

    Source: fitness inheritance (Smith, Dike & Stegmann 1995); the correction of a closed form is
    ours.
    """

    def __init__(self, records: Sequence[Record]) -> None:
        results = [record.evaluation.results for record in records]
        self.further = excess(results)
        self._usual = sum(self.further) / len(self.further) if self.further else 0.0
        pairs = [
            (self._loss(values), values["reconstruction"])
            for values in results
            if {"few", "reconstruction"} <= values.keys()
        ]
        points = np.array(pairs[-_MEMORY:]).reshape(-1, 2)
        self.line = _line(points)
        self.trust = _trust(points)
        # The median and maximum of the closed-form errors; zeros where there are too few pairs.
        enough = len(points) >= _PAIRS
        self._middle = float(np.median(points[:, 1])) if enough else 0.0
        self._highest = float(np.max(points[:, 1])) if enough else 0.0
        self._corrections: list[float] = []
        # Parents come before their children.
        for record in records:
            evaluation, correction = record.evaluation, 0.0
            if evaluation.same_as is not None:
                correction = self._corrections[evaluation.same_as]
            elif "reconstruction" in evaluation.results:
                correction = self._correction(record.candidate, evaluation.results)
            self._corrections.append(correction)

    def expect(self, candidate: Candidate, results: Mapping[str, float]) -> float | None:
        """The expected error of `candidate`; None where it has no closed-form error."""
        if "reconstruction" not in results:
            return None
        alone = self._alone(results["reconstruction"])
        return alone + self._correction(candidate, results)

    def _alone(self, closed: float) -> float:
        """The expected error of a candidate with only the closed-form error `closed`."""
        inside = min(closed, self._highest)
        return self._middle + self.trust * (inside - self._middle) + (closed - inside)

    def _loss(self, results: Mapping[str, float]) -> float:
        """The loss on the few windows, estimated from that on all windows where there is one."""
        return results["all"] - self._usual if "all" in results else results["few"]

    def _correction(self, candidate: Candidate, results: Mapping[str, float]) -> float:
        """The expected error of a candidate less the expectation from its closed form alone."""
        if "few" in results and self.line is not None:
            slope, intercept = self.line
            return intercept + slope * self._loss(results) - self._alone(results["reconstruction"])
        inherited = [self._corrections[parent] for parent in candidate.parents]
        return _INHERITED * sum(inherited) / len(inherited) if inherited else 0.0


def _trust(points: NDArray[np.float64]) -> float:
    """An upper bound of Kendall's τ between the losses and the closed-form errors, in [0, 1].

    Two standard errors (Kendall 1938) above the observed τ, so that it falls only with evidence.
    """
    count = len(points)
    if count < _PAIRS:
        return 1.0
    tau = np.nan_to_num(stats.kendalltau(points[:, 0], points[:, 1]).statistic)
    error = np.sqrt(2 * (2 * count + 5) / (9 * count * (count - 1)))
    return float(np.clip(tau + 2 * error, 0, 1))


def _line(points: NDArray[np.float64]) -> tuple[float, float] | None:
    """Slope and intercept of the error over the loss, by medians, which outliers do not move.

    None without points. Source: Theil 1950, Sen 1968.
    """
    if not len(points):
        return None
    losses, errors = points.T
    slope = _SLOPE
    if len(points) >= _PAIRS and np.ptp(losses):
        # Its interval, which is not used, may be undefined.
        with np.errstate(invalid="ignore"):
            slope = max(_SLOPE / 2, float(stats.theilslopes(errors, losses).slope))
    return slope, float(np.median(errors - slope * losses))
