"""Facts about an expression's values, derived without evaluating it."""

import math

from pruner_zero.metric.expression import Call, Constant, Expression, Terminal
from pruner_zero.metric.terminals import TERMINALS

# Statistics lie between about 1e-4 and 1e4, so fp32 holds their products up to this degree.
_HIGHEST_GROWTH = 8.0
# Higher roots are so close to 1 that fp32 rounds many of them to the same value.
_LOWEST_EXPONENT = 1 / 16


def is_tame(expression: Expression) -> bool:
    """Whether fp32 computes the values well, and they are finite and not all zero."""
    return growth(expression) <= _HIGHEST_GROWTH


def is_positive(expression: Expression) -> bool:
    """Whether all values are known to be above zero."""
    if isinstance(expression, Constant):
        return expression.value > 0
    if isinstance(expression, Terminal):
        return TERMINALS[expression.name].sign == "positive"
    assert isinstance(expression, Call)
    keeps_positive = (
        expression.operator.name in ("add", "mul", "quotient") or expression.exponent is not None
    )
    operands = expression.operands[: expression.operator.expressions]
    return keeps_positive and all(map(is_positive, operands))


def growth(expression: Expression) -> float:
    """The degree as a product of statistics; 0 for a single number.

    Infinite where fp32 may overflow, underflow or round the values to ties, where the values may be
    nan or all zero, and where the operator states no fact that decides.
    """
    if isinstance(expression, Constant):
        return 0.0 if 1e-6 <= abs(expression.value) <= 1e6 else math.inf
    if not isinstance(expression, Call):
        return 1.0
    if not expression.terminals:
        return math.inf
    operator, operands = expression.operator, expression.operands
    parts = [growth(operand) for operand in operands]
    if expression.exponent is not None:
        usual = expression.exponent > 0 or is_positive(operands[0])
        distinct = abs(expression.exponent) >= _LOWEST_EXPONENT
        return abs(expression.exponent) * parts[0] if usual and distinct else math.inf
    if operator.name == "mul" or (operator.name == "quotient" and is_positive(operands[1])):
        return sum(parts)
    if operator.name in ("add", "sub") or operator.factor is not None:
        return max(parts)
    outputs, inputs = operands[0].shape.value
    # Along an axis on which nothing varies, a rescaling gives only signs or nan.
    varies = {"row": inputs, "column": outputs, "matrix": outputs or inputs}
    ordered = operator.increasing != "never" and varies.get(operator.reach, operator.arity == 1)
    if not ordered or max(parts) > _HIGHEST_GROWTH:
        return math.inf
    return 1.0 if operator.arity == 1 else parts[0]
