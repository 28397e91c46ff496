"""The paper's simplification: operations that oppose each other vanish."""

from pruner_zero.metric.expression import Call, Expression
from pruner_zero.metric.operator import Operator


def simplify_opposing(expression: Expression) -> Expression:
    """The expression without its pairs of opposing operations along parent and child.

    exp of log, sqr or pow of sqrt, both the other way round, and neg of neg leave their operand;
    skp always does. It is idempotent. It may change masks, which `canonical` keeps: sqrt(sqr(S))
    is |S| but becomes S.
    Source: Dong 2024 (Pruner-Zero, arXiv 2406.02924), its opposing-operation simplification.
    """
    if not isinstance(expression, Call):
        return expression
    # One pass from the leaves up is enough: the operands are free of pairs before their parent
    # is looked at.
    operands = tuple(simplify_opposing(operand) for operand in expression.operands)
    first = operands[0]
    if expression.operator.factor == 1:
        return first
    if isinstance(first, Call) and _oppose(expression.operator, first.operator):
        return first.operands[0]
    return expression if operands == expression.operands else Call(expression.operator, operands)


def _oppose(outer: Operator, inner: Operator) -> bool:
    return outer.inverse == inner.name or inner.inverse == outer.name
