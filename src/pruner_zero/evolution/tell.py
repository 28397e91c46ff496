"""What the losses of candidates tell: the best exponents of a skeleton, from a quadratic."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import islice

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from pruner_zero.errors import PrunerZeroError
from pruner_zero.evolution.ask import Proposal, Result
from pruner_zero.evolution.candidate import TUNE, Candidate, Template, excess
from pruner_zero.evolution.space import SearchSpace, on_grid
from pruner_zero.metric.expression import Expression

_Array = NDArray[np.float64]

# The prior of the loss (nats) around the best exponents of a skeleton: standard deviations of its
# gradient, its curvature and the interaction of two exponents, and the mean of the curvature. The
# prior is wide: a few losses outweigh it.
_GRADIENT, _CURVATURE, _CURVATURE_MEAN, _INTERACTION = 0.5, 1.5, 2.0, 0.7
# The assumed standard deviation of losses from that quadratic.
_NOISE = 0.005
# A quadratic is accurate only near the best: points farther away are left out.
_RADIUS = 0.6
# The largest step of new exponents from the best, and their number for a skeleton.
_STEP, _DRAWS = 0.4, 256
# A plausible loss is the expected one less this many standard deviations.
_OPTIMISM = 0.3
# The least gain (nats) of a plausible loss over the best, to propose exponents.
_GAIN = 0.001
# The most skeletons that are fitted, and the most proposals for each.
_SKELETONS, _MOST = 8, 2


class Tuner:
    """Proposes exponents for the best skeletons, from a quadratic model of their losses.

    For each of the skeletons with the lowest losses the loss is modelled as a quadratic function of
    the exponents around the best ones, by Bayesian linear regression. Of exponents drawn nearby
    and on the grid, those with the lowest plausible loss are proposed, where it is below the best
    loss. So a skeleton with many points is tuned, and one with few is explored.
    Source: response surfaces (Box & Wilson 1951) with a lower confidence bound (Cox & John 1992);
    constants apart from structure as in Kommenda et al. 2020.
    """

    def __init__(self, space: SearchSpace) -> None:
        self.space = space
        self._results: dict[Template, dict[tuple[float, ...], Result]] = defaultdict(dict)

    def add(self, results: Sequence[Result]) -> None:
        """Take in candidates that ran on windows."""
        for candidate, evaluation in results:
            if evaluation.counts and "few" in evaluation.results and candidate.skeleton.exponents:
                of_template = self._results[candidate.template]
                of_template[candidate.skeleton.exponents] = candidate, evaluation

    def propose(self, generator: Generator, count: int) -> list[Proposal]:
        """At most `count` candidates with other exponents, the most promising first."""
        results = [[*points.values()] for points in self._results.values()]
        further = excess(evaluation.results for points in results for _, evaluation in points)
        usual = sum(further) / len(further) if further else 0.0
        skeletons = [_Points(points, usual) for points in results]
        skeletons.sort(key=lambda points: (points.lowest, points.best.number))
        ranked: list[tuple[float, Proposal]] = []
        for points in skeletons[:_SKELETONS]:
            ranked += self._of_skeleton(points, generator)
        limit = min((points.lowest for points in skeletons), default=0.0) - _GAIN
        ranked.sort(key=lambda pair: (pair[0], pair[1].parents))
        return [proposal for loss, proposal in ranked if loss < limit][:count]

    def _of_skeleton(
        self, points: "_Points", generator: Generator
    ) -> Iterator[tuple[float, Proposal]]:
        """The exponents of one skeleton with the lowest plausible losses, and these."""
        best = points.best
        steps = generator.uniform(-_STEP, _STEP, (_DRAWS, len(points.center)))
        # Half of the draws move one exponent alone.
        alone = generator.integers(len(points.center), size=_DRAWS // 2)
        steps[: _DRAWS // 2] *= np.eye(len(points.center))[alone]
        rounded = (
            tuple(on_grid(value) or float(value) for value in values)
            for values in points.center + steps
        )
        known = self._results[best.template]
        drawn = [*dict.fromkeys(each for each in rounded if min(each) > 0 and each not in known)]
        if not drawn:
            return
        losses = points.plausible(np.array(drawn))
        ordered = ((index, self._form(best, drawn[index])) for index in losses.argsort())
        for index, form in islice((pair for pair in ordered if pair[1] is not None), _MOST):
            assert form is not None
            yield float(losses[index]), Proposal(form, best.scope, (best.number,), TUNE)

    def _form(self, best: Candidate, exponents: tuple[float, ...]) -> Expression | None:
        """The skeleton of the candidate with these exponents; None where the space has it not."""
        try:
            expression = best.skeleton.with_exponents(exponents)
        except PrunerZeroError:
            return None
        return expression if self.space.allows(expression) else None


class _Points:
    """The data of one skeleton: exponents (points, factors), losses, and their quadratic.

    usual: the loss on all windows minus that on few, where a candidate ran on few alone.
    """

    def __init__(self, results: Sequence[Result], usual: float) -> None:
        values = [evaluation.results for _, evaluation in results]
        losses = np.array([each.get("all", each["few"] + usual) for each in values])
        exponents = np.array([candidate.skeleton.exponents for candidate, _ in results])
        first = int(np.argmin(losses))
        self.best: Candidate = results[first][0]
        self.lowest = float(losses[first])
        self.center: _Array = exponents[first]
        near = np.abs(exponents - self.center).max(axis=1) <= _RADIUS
        design = _features(exponents[near] - self.center)
        mean, deviation = _prior(len(self.center))
        # The posterior of the coefficients: normal equations of a linear model with normal noise.
        precision = design.T @ design / _NOISE**2 + np.diag(deviation**-2.0)
        right = design.T @ (losses[near] - self.lowest) / _NOISE**2 + mean / deviation**2
        self._covariance = np.linalg.inv(precision)
        self._coefficients = self._covariance @ right

    def plausible(self, exponents: _Array) -> _Array:
        """The plausible loss for each row of `exponents`."""
        design = _features(exponents - self.center)
        variance = np.einsum("ij,jk,ik->i", design, self._covariance, design)
        losses: _Array = self.lowest + design @ self._coefficients - _OPTIMISM * np.sqrt(variance)
        return losses


def _features(steps: _Array) -> _Array:
    """1, every step, half of its square, and the products of two steps, by column."""
    first, second = np.triu_indices(steps.shape[1], 1)
    ones = np.ones((len(steps), 1))
    return np.hstack([ones, steps, steps**2 / 2, steps[:, first] * steps[:, second]])


def _prior(count: int) -> tuple[_Array, _Array]:
    """Mean and standard deviation of the coefficients of `_features`, before any loss."""
    pairs = count * (count - 1) // 2
    mean = np.repeat([0.0, 0.0, _CURVATURE_MEAN, 0.0], [1, count, count, pairs])
    deviation = np.repeat([_NOISE, _GRADIENT, _CURVATURE, _INTERACTION], [1, count, count, pairs])
    return mean, deviation
