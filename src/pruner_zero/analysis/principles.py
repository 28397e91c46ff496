"""The principles of good pruning metrics that the paper states, tested on a search."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from pruner_zero.analysis.statistics import Estimate, interval, ratio_draws, ratios
from pruner_zero.evolution.archive import Record
from pruner_zero.metric import OPERATORS, Operator, parse

Verdict = Literal["held", "not held", "too little data"]
# The kind and the name of each.
Traits = frozenset[tuple[str, str]]
Condition = Callable[[Traits], bool]
Array = NDArray[np.float64]

FEWEST_LOSSES = 20
FEWEST_BEST = 10
# With fewer runs, no interval of a median has 95 % coverage.
FEWEST_RUNS = 6

PAPER = "Dong 2024 (Pruner-Zero, arXiv 2406.02924), in this project's words"


@dataclass(frozen=True)
class Principle:
    """A statement, the number that decides it, and the verdict.

    verdict: held where the whole 95 % interval of `estimate` lies above `neutral`, else not held;
    `remark` says then whether the data contradicts the statement or leaves it open. n: how many
    candidates the estimate rests on, the best ones or those with a loss.
    """

    statement: str
    verdict: Verdict
    measure: str
    estimate: Estimate
    neutral: float
    n: int
    remark: str
    source: str = PAPER


def traits(record: Record) -> Traits:
    """The terminals, operators and scope of a candidate.

    Terminals are those of the canonical form, since no other terminal can change the mask;
    operators are those of the expression as it was written.
    """
    expression, scope = record.candidate.expression, record.candidate.scope
    operators = (("operator", name) for name in expression.operator_counts())
    terminals = (("terminal", name) for name in parse(record.canonical).terminals)
    return frozenset([*terminals, *operators, ("scope", scope)])


def rescales(operator: Operator) -> bool:
    """Whether the operator normalises values by a statistic of a row, column or matrix."""
    return operator.reach != "element" and operator.shape_rule != "scalar"


def multiplies(operator: Operator) -> bool:
    """Whether the operator is a product of magnitudes: mul, sqr, pow, abs."""
    return operator.degree == 2 or operator.exponent == 1


def transcendental(operator: Operator) -> bool:
    """Whether the operator is a function such as exp, log and tanh."""
    return operator.family == "transcendental"


def principles_of(
    best: Sequence[Traits],
    others: Sequence[Traits],
    size: Estimate,
    losses: int,
    generator: np.random.Generator,
) -> list[Principle]:
    """The four principles, tested on the best candidates beside all `others`.

    size: Kendall's τ of size and loss over `losses` candidates. The other principles are measured
    by quotients of over-representation: the share of a trait among the best candidates over its
    share among all. Sources: the principles are those of Dong 2024 (arXiv 2406.02924); the
    measures are ours.
    """
    rescaling = sorted(name for name, operator in OPERATORS.items() if rescales(operator))
    lacking = ""
    if losses < FEWEST_LOSSES:
        lacking = f"{losses} losses, {FEWEST_LOSSES} are needed"
    elif math.isnan(size.value):
        lacking = "all sizes or all losses are equal"
    statement, measure = "simpler trees are better", "Kendall's τ of nodes and loss"
    results = [_judged(statement, measure, size, 0.0, losses, lacking)]
    by_ratios: Sequence[tuple[str, str, Mapping[str, Condition], Callable[[Array], Array]]] = (
        (
            "weights and gradients matter more than activations",
            "over-representation of W or of G, the lower, over that of X",
            {name: _needs(name) for name in ("W", "G", "X")},
            lambda ratio: np.minimum(ratio[:, 0], ratio[:, 1]) / ratio[:, 2],
        ),
        (
            "operators that put values on one scale belong in good metrics",
            f"over-representation of metrics with one of {', '.join(rescaling)}",
            {"a rescaling operator": _uses(rescales)},
            lambda ratio: ratio[:, 0],
        ),
        (
            "plain products of magnitudes do better than exp, log or tanh of them",
            "over-representation of mul, sqr, pow or abs over that of exp, log or tanh",
            {"mul, sqr, pow or abs": _uses(multiplies), "exp, log or tanh": _uses(transcendental)},
            lambda ratio: ratio[:, 0] / ratio[:, 1],
        ),
    )
    for statement, measure, conditions, combine in by_ratios:
        good, rest = (
            np.array([[met(facts) for met in conditions.values()] for facts in group], dtype=float)
            for group in (best, others)
        )
        lacking = _lacking(good, rest, list(conditions))
        estimate = Estimate() if lacking else _combined(good, rest, combine, generator)
        results.append(_judged(statement, measure, estimate, 1.0, len(best), lacking))
    return results


def across(runs: Sequence[Sequence[Principle]]) -> list[Principle]:
    """The principles over several searches; each search is one independent observation.

    runs: what `principles_of` gave for each. An estimate is the median over the runs that have one,
    with its interval by order statistics, for which 6 runs are needed; n counts these runs.
    """
    results = []
    for tests in zip(*runs, strict=True):
        values = [test.estimate.value for test in tests if not math.isnan(test.estimate.value)]
        lacking, estimate = "", Estimate()
        if values:
            bounds = stats.quantile_test(values).confidence_interval()
            estimate = Estimate(float(np.median(values)), float(bounds.low), float(bounds.high))
        if math.isnan(estimate.low + estimate.high):
            lacking = f"{len(values)} runs, {FEWEST_RUNS} are needed"
        first = tests[0]
        judged = (first.statement, first.measure, estimate, first.neutral, len(values), lacking)
        results.append(_judged(*judged))
    return results


def _combined(
    good: Array, rest: Array, combine: Callable[[Array], Array], generator: np.random.Generator
) -> Estimate:
    """A function of the over-representation of several traits, with its interval."""
    with np.errstate(divide="ignore", invalid="ignore"):
        value = float(combine(ratios(good, rest)[np.newaxis])[0])
    draws = combine(ratio_draws(good, rest, generator))
    # The plain quotient is not finite where none of the best has the trait in the denominator.
    return interval(value if math.isfinite(value) else float(np.median(draws)), draws)


def _lacking(good: Array, rest: Array, names: Sequence[str]) -> str:
    """The data that is missing to compare the traits; empty if there is enough data."""
    if min(len(good), len(rest)) < FEWEST_BEST:
        return f"{len(good)} good metrics and {len(rest)} others, {FEWEST_BEST} of each are needed"
    everyone = np.concatenate([good, rest])
    for name, column in zip(names, everyone.T, strict=True):
        if not column.any():
            return f"no metric has {name}"
    return "all metrics are alike in this" if np.all(everyone == everyone[0]) else ""


def _judged(
    statement: str, measure: str, estimate: Estimate, neutral: float, n: int, lacking: str
) -> Principle:
    verdict: Verdict = "not held"
    remark = "the interval leaves it open"
    if lacking:
        verdict, remark = "too little data", lacking
    elif estimate.low > neutral:
        verdict, remark = "held", ""
    elif estimate.high < neutral:
        remark = "the data says the opposite"
    return Principle(statement, verdict, measure, estimate, neutral, n, remark)


def _needs(terminal: str) -> Condition:
    return lambda facts: ("terminal", terminal) in facts


def _uses(kind: Callable[[Operator], bool]) -> Condition:
    return lambda facts: any(what == "operator" and kind(OPERATORS[name]) for what, name in facts)
