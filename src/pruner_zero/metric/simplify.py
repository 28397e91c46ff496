"""The paper's simplification: operations that oppose each other vanish."""

from pruner_zero.metric.expression import Call, Expression

_OPPOSING = {
    "exp": ("log",),
    "log": ("exp",),
    "neg": ("neg",),
    "pow": ("sqrt",),
    "sqr": ("sqrt",),
    "sqrt": ("pow", "sqr"),
}


def simplify_opposing(expression: Expression) -> Expression:
    """The expression without its pairs of opposing operations along parent and child.

    exp of log and log of exp, sqr or pow of sqrt and sqrt of either, and neg of neg leave
    their operand; skp always does. Repeated until no such pair is left, so it is idempotent;
    the result never has more nodes. It reads names only and may change values, and masks with
    them: log adds 0.001, and both roots and logarithms take magnitudes, so sqrt(sqr(S)) is
    |S| but becomes S. `canonical` keeps the mask.
    Source: Dong 2024 (Pruner-Zero, arXiv 2406.02924), its opposing-operation simplification.
    """
    if not isinstance(expression, Call):
        return expression
    # From the leaves up, once: an operand is free of pairs before its parent is looked at, and
    # what a vanished pair leaves meets the next parent in turn.
    operands = tuple(simplify_opposing(operand) for operand in expression.operands)
    name, first = expression.operator.name, operands[0]
    if name == "skp":
        return first
    if isinstance(first, Call) and first.operator.name in _OPPOSING.get(name, ()):
        return first.operands[0]
    return expression if operands == expression.operands else Call(expression.operator, operands)
