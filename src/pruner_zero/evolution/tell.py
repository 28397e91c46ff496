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

# A proposal after whether it explores, its predicted loss (expected or, where it explores,
# plausible), and the number of its parent.
_Ranked = tuple[bool, float, int, Proposal]

# The prior of the loss (nats) around the best exponents of a skeleton: standard deviations of its
# gradient, its curvature and the interaction of two exponents, and the mean of the curvature. The
# prior is wide: a few losses outweigh it.
_GRADIENT, _CURVATURE, _CURVATURE_MEAN, _INTERACTION = 0.5, 1.5, 2.0, 0.7
# The assumed standard deviation of losses on few and on all windows from that quadratic.
_NOISE_FEW, _NOISE_ALL = 0.006, 0.003
# A quadratic is accurate only near the best: points farther away or far above are left out.
_RADIUS, _HEIGHT = 0.6, 0.3
# The largest step of new exponents from the best, and their number for a skeleton.
_STEP, _DRAWS = 0.4, 256
# The least gain (nats) of an expected or plausible loss over the best, to propose exponents.
_GAIN = 0.001
# The most skeletons that are fitted, and for each the most proposals to tune and to explore it.
_SKELETONS, _TO_TUNE, _TO_EXPLORE = 8, 1, 2


class Tuner:
    """Proposes exponents for the best skeletons, from a quadratic model of their losses.

    For each of the skeletons with the lowest losses the loss is modelled as a quadratic function of
    the exponents around the best ones, by Bayesian linear regression. Of exponents drawn nearby
    and on the grid, those with the lowest expected loss are proposed first, then those with the
    lowest plausible loss, the mean less a standard deviation; both only where that loss is below
    the best one. So a skeleton with many points is tuned, and one with few is explored.
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
        results = [result for points in self._results.values() for result in points.values()]
        usual = _usual(results)
        skeletons = [
            _Points([*points.values()], _usual([*points.values()], usual))
            for points in self._results.values()
        ]
        skeletons.sort(key=lambda points: (points.lowest, points.best.number))
        ranked: list[_Ranked] = []
        for points in islice(skeletons, _SKELETONS):
            ranked += self._of_skeleton(points, generator)
        limit = min((points.lowest for points in skeletons), default=0.0) - _GAIN
        ranked = sorted((part for part in ranked if part[1] < limit), key=lambda part: part[:3])
        # Exponents can have both the lowest expected and the lowest plausible loss.
        distinct = dict.fromkeys(proposal for *_, proposal in ranked)
        return [*islice(distinct, count)]

    def _of_skeleton(self, points: "_Points", generator: Generator) -> Iterator[_Ranked]:
        """The exponents of one skeleton with the lowest expected and lowest plausible losses."""
        steps = generator.uniform(-_STEP, _STEP, (_DRAWS, len(points.center)))
        # Half of the draws move one exponent alone.
        alone = generator.integers(len(points.center), size=_DRAWS // 2)
        steps[: _DRAWS // 2] *= np.eye(len(points.center))[alone]
        rounded = (
            tuple(on_grid(value) or float(value) for value in values)
            for values in points.center + steps
        )
        known = self._results[points.best.template]
        drawn = [*dict.fromkeys(each for each in rounded if min(each) > 0 and each not in known)]
        if not drawn:
            return
        mean, deviation = points.predict(np.array(drawn))
        parents = (points.best.number,)
        for explores, losses, most in (
            (False, mean, _TO_TUNE),
            (True, mean - deviation, _TO_EXPLORE),
        ):
            ordered = ((index, self._form(points.best, drawn[index])) for index in losses.argsort())
            for index, form in islice((pair for pair in ordered if pair[1] is not None), most):
                proposal = Proposal(form, points.best.scope, parents, TUNE)
                yield explores, float(losses[index]), parents[0], proposal

    def _form(self, best: Candidate, exponents: tuple[float, ...]) -> Expression | None:
        """The skeleton of the candidate with these exponents; None where the space has it not."""
        try:
            expression = best.skeleton.with_exponents(exponents)
        except PrunerZeroError:
            return None
        return expression if self.space.allows(expression) else None


class _Points:
    """The data of one skeleton: exponents (points, factors), losses, and their quadratic."""

    def __init__(self, results: Sequence[Result], usual: float) -> None:
        losses = np.array([_loss(result, usual) for result in results])
        exponents = np.array([candidate.skeleton.exponents for candidate, _ in results])
        noise = np.array(
            [_NOISE_ALL if "all" in result.results else _NOISE_FEW for _, result in results]
        )
        first = int(np.argmin(losses))
        self.best: Candidate = results[first][0]
        self.lowest = float(losses[first])
        self.center: _Array = exponents[first]
        near = np.abs(exponents - self.center).max(axis=1) <= _RADIUS
        near &= losses <= self.lowest + _HEIGHT
        design = _features(exponents[near] - self.center)
        mean, deviation = _prior(len(self.center))
        # The posterior of the coefficients: normal equations of a linear model with normal noise.
        weights = 1 / noise[near] ** 2
        precision = (design.T * weights) @ design + np.diag(deviation**-2.0)
        right = design.T @ (weights * (losses[near] - self.lowest)) + mean / deviation**2
        self._covariance = np.linalg.inv(precision)
        self._coefficients = self._covariance @ right

    def predict(self, exponents: _Array) -> tuple[_Array, _Array]:
        """The expected loss and its standard deviation, for each row of `exponents`."""
        design = _features(exponents - self.center)
        variance = np.einsum("ij,jk,ik->i", design, self._covariance, design)
        return self.lowest + design @ self._coefficients, np.sqrt(variance)


def _features(steps: _Array) -> _Array:
    """1, every step, half of its square, and the products of two steps, by column."""
    first, second = np.triu_indices(steps.shape[1], 1)
    ones = np.ones((len(steps), 1))
    return np.hstack([ones, steps, steps**2 / 2, steps[:, first] * steps[:, second]])


def _prior(count: int) -> tuple[_Array, _Array]:
    """Mean and standard deviation of the coefficients of `_features`, before any loss."""
    pairs = count * (count - 1) // 2
    mean = np.repeat([0.0, 0.0, _CURVATURE_MEAN, 0.0], [1, count, count, pairs])
    deviation = np.repeat(
        [_NOISE_FEW, _GRADIENT, _CURVATURE, _INTERACTION], [1, count, count, pairs]
    )
    return mean, deviation


def _usual(results: Sequence[Result], default: float = 0.0) -> float:
    """The mean `excess` of the results; `default` where none ran on all windows."""
    further = excess(evaluation.results for _, evaluation in results)
    return sum(further) / len(further) if further else default


def _loss(result: Result, usual: float) -> float:
    """The loss on all windows, estimated from that on few where there is none."""
    results = result[1].results
    return results["all"] if "all" in results else results["few"] + usual
