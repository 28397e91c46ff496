"""The features of a metric that an analysis counts."""

from dataclasses import dataclass

from pruner_zero.evolution.archive import Record
from pruner_zero.metric import Operator, parse


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

    terminals: those of the canonical form, since no other terminal can change the mask.
    operators: those of the expression as it was written.
    """

    terminals: frozenset[str]
    operators: frozenset[str]
    scope: str


def structure(record: Record) -> Structure:
    """The features of a record."""
    operators = frozenset(record.candidate.expression.operator_counts())
    return Structure(parse(record.canonical).terminals, operators, record.candidate.scope)
