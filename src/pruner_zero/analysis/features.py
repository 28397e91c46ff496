"""The features of a metric that an analysis relates to the loss."""

import math
from dataclasses import dataclass

from pruner_zero.evolution.archive import Record
from pruner_zero.evolution.hall_of_fame import complexity
from pruner_zero.metric import OPERATORS, TERMINALS, Expression, Operator, Terminal, parse
from pruner_zero.metric.canonical import factors


def rescales(operator: Operator) -> bool:
    """Whether the operator normalises values by a statistic of a row, column or matrix."""
    return operator.reach != "element" and operator.shape_rule != "scalar"


def multiplies(operator: Operator) -> bool:
    """Whether the operator is a product of magnitudes: mul, sqr, pow, abs."""
    return operator.degree == 2 or operator.exponent == 1


def transcendental(operator: Operator) -> bool:
    """Whether the operator is a function such as exp, log and tanh."""
    return operator.family == "transcendental"


@dataclass(frozen=True)
class Structure:
    """The features of a candidate.

    terminals: those of the canonical form; no other can change the mask. operators: those of the
    expression as it was written. features: numbers by name, nan where one does not apply.
    """

    terminals: frozenset[str]
    operators: frozenset[str]
    scope: str
    features: dict[str, float]


def structure(record: Record) -> Structure:
    """The features of a record."""
    expression, form = record.candidate.expression, parse(record.canonical)
    leaves, operators = expression.leaf_counts(), frozenset(expression.operator_counts())
    facts = [OPERATORS[name] for name in operators]
    scales = [operator.reach for operator in facts if rescales(operator)]
    powers = exponents(form)
    features = {
        "size": expression.size,
        "depth": expression.depth,
        "complexity": complexity(expression),
        **{f"number of {name}": leaves[name] for name in TERMINALS},
        **{f"uses {name}": name in form.terminals for name in TERMINALS},
        "statistics used": len(form.terminals),
        "whole-matrix rescaling": "matrix" in scales,
        "row or column rescaling": "row" in scales or "column" in scales,
        "exp, log or tanh": any(map(transcendental, facts)),
        "sum in canonical form": any(name in form.operator_counts() for name in ("add", "sub")),
        "product of powers": bool(powers),
        **{
            f"exponent of {name}": powers.get(name, 0.0) if powers else math.nan
            for name in TERMINALS
        },
    }
    return Structure(
        form.terminals,
        operators,
        record.candidate.scope,
        {name: float(value) for name, value in features.items()},
    )


def exponents(form: Expression) -> dict[str, float]:
    """The exponent of each terminal where a canonical form is a product of powers, else nothing.

    They are relative to the largest. A product with a negative factor has none here: it ranks in
    the opposite order.
    """
    coefficient, bases = factors(form)
    powers = {base.name: power for base, power in bases.items() if isinstance(base, Terminal)}
    if len(powers) < len(bases) or not powers or coefficient <= 0:
        return {}
    largest = abs(max(powers.values()))
    return {name: power / largest for name, power in powers.items()}
