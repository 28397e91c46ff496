"""What a metric is made of: the facts that an analysis relates to the loss."""

import math
from dataclasses import dataclass

from pruner_zero.evolution.archive import Record
from pruner_zero.evolution.hall_of_fame import complexity
from pruner_zero.metric import OPERATORS, TERMINALS, Expression, Terminal, parse
from pruner_zero.metric.normal import Normal

# Operators that see a whole row, column or matrix to put its values on one scale.
RESCALING = frozenset(
    name
    for name, operator in OPERATORS.items()
    if operator.reach != "element" and operator.shape_rule != "scalar"
)
MATRIX_RESCALING = frozenset(name for name in RESCALING if OPERATORS[name].reach == "matrix")
PRODUCTS = frozenset({"mul", "sqr", "pow", "abs"})
TRANSCENDENTAL = frozenset({"exp", "log", "tanh"})


@dataclass(frozen=True)
class Structure:
    """One candidate's facts.

    terminals: those of the canonical form, the others cannot matter to the mask. operators:
    those of the expression as it was written. features: numbers by name, nan where one does
    not apply.
    """

    terminals: frozenset[str]
    operators: frozenset[str]
    scope: str
    features: dict[str, float]


def structure(record: Record) -> Structure:
    """The facts of a record."""
    expression, form = record.candidate.expression, parse(record.canonical)
    leaves, operators = expression.leaf_counts(), frozenset(expression.operator_counts())
    powers = exponents(form)
    features = {
        "size": expression.size,
        "depth": expression.depth,
        "complexity": complexity(expression),
        **{f"number of {name}": leaves[name] for name in TERMINALS},
        **{f"uses {name}": name in form.terminals for name in TERMINALS},
        "statistics used": len(form.terminals),
        "whole-matrix rescaling": bool(operators & MATRIX_RESCALING),
        "row or column rescaling": bool(operators & (RESCALING - MATRIX_RESCALING)),
        "exp, log or tanh": bool(operators & TRANSCENDENTAL),
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

    Canonical forms have 1 as their largest exponent, so these are relative. A product with a
    minus sign ranks upside down and is none.
    """
    normal = Normal()
    coefficient, factors = normal.factors(normal.of(form))
    powers = {base.name: power for base, power in factors.items() if isinstance(base, Terminal)}
    return powers if len(powers) == len(factors) and coefficient > 0 else {}
