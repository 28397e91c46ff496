"""What a closed-form error will turn out to be worth, learned from the losses of the run."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from pruner_zero.evolution.archive import Record
from pruner_zero.evolution.candidate import Candidate

# Losses and closed-form errors that the line between them is drawn through, at least and at most.
_PAIRS, _MEMORY = 8, 64
# How much the closed form rises per nat of loss where the run cannot tell yet, or tells that it
# does not; measured in benchmarks/fitness.md over all comparison groups.
_SLOPE = 2.0
# The part of what a loss taught of a candidate that holds for its children too.
_INHERITED = 0.7


class Surrogate:
    """Expectations on the scale of the closed-form error, lower is better.

    A candidate that ran on windows is expected at the error that such a loss usually goes with.
    One that did not is expected at its own error, moved by a part of what was found out about
    its parents: where the closed form is blind, relatives err alike. trust: how well the closed
    form may rank what ran on windows, from 0, not at all, to 1; differences between errors count
    for so much, up to the highest that ran. further: how far the loss on all windows lay above
    that on few, in nats, one for each that ran on both. Source: ours.
    """

    def __init__(self, records: Sequence[Record]) -> None:
        self.records = records
        found = [record.evaluation.results for record in records]
        self.further = [one["all"] - one["few"] for one in found if {"few", "all"} <= one.keys()]
        self._usual = sum(self.further) / len(self.further) if self.further else 0.0
        pairs = [
            (self._loss(one), one["reconstruction"])
            for one in found
            if {"few", "reconstruction"} <= one.keys()
        ]
        points = np.array(pairs[-_MEMORY:]).reshape(-1, 2)
        self.line = _line(points)
        self.trust = _trust(points)
        self._middle, self._highest = _middle_and_highest(points)
        self._lessons: list[float] = []
        # Parents come before their children.
        for record in records:
            self._lessons.append(self._taught(record))

    def expect(self, candidate: Candidate, results: Mapping[str, float]) -> float | None:
        """What `candidate` is expected at; None where it has no closed-form error."""
        if "reconstruction" not in results:
            return None
        alone = self._alone(results["reconstruction"])
        return alone + self._lesson(candidate, results)

    def _alone(self, closed: float) -> float:
        """What a candidate of this error is expected at that nothing else is known of."""
        known = min(closed, self._highest)
        return self._middle + self.trust * (known - self._middle) + (closed - known)

    def _loss(self, results: Mapping[str, float]) -> float:
        """The loss on the few windows, as that on all of them has it where it is known."""
        return results["all"] - self._usual if "all" in results else results["few"]

    def _lesson(self, candidate: Candidate, results: Mapping[str, float]) -> float:
        """How much more is expected of a candidate than of any with the same error."""
        if "few" in results and self.line is not None:
            slope, intercept = self.line
            return intercept + slope * self._loss(results) - self._alone(results["reconstruction"])
        found = [self._lessons[parent] for parent in candidate.parents]
        return _INHERITED * sum(found) / len(found) if found else 0.0

    def _taught(self, record: Record) -> float:
        """The lesson of an earlier candidate, which its children inherit a part of."""
        evaluation = record.evaluation
        if evaluation.same_as is not None:
            return self._lessons[evaluation.same_as]
        if "reconstruction" not in evaluation.results:
            return 0.0
        return self._lesson(record.candidate, evaluation.results)


def _middle_and_highest(points: NDArray[np.float64]) -> tuple[float, float]:
    """Of the closed-form errors that were tried; zeros where they are too few for a doubt."""
    if len(points) < _PAIRS:
        return 0.0, 0.0
    return float(np.median(points[:, 1])), float(np.max(points[:, 1]))


def _trust(points: NDArray[np.float64]) -> float:
    """The highest Kendall's τ that the closed-form error and the loss may well have, in [0, 1].

    Two standard errors (Kendall 1938) above what is seen: it falls with evidence only.
    """
    count = len(points)
    if count < _PAIRS:
        return 1.0
    first, second = np.triu_indices(count, 1)
    signs = np.sign(points[second] - points[first])
    error = np.sqrt(2 * (2 * count + 5) / (9 * count * (count - 1)))
    return float(np.clip(np.mean(signs[:, 0] * signs[:, 1]) + 2 * error, 0, 1))


def _line(points: NDArray[np.float64]) -> tuple[float, float] | None:
    """Slope and intercept of the error over the loss, by medians, so that outliers move neither.

    None without points. Source: Theil 1950, Sen 1968.
    """
    if not len(points):
        return None
    slope = _SLOPE
    first, second = np.triu_indices(len(points), 1)
    run, rise = (points[second] - points[first]).T
    if len(points) >= _PAIRS and run.any():
        slope = max(_SLOPE / 2, float(np.median(rise[run != 0] / run[run != 0])))
    return slope, float(np.median(points[:, 1] - slope * points[:, 0]))
