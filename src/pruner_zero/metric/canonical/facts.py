"""The bounds of an expression's values, from the facts of its terminals and operators."""

import math
import sys

import torch

from pruner_zero.metric.canonical.bounds import POSITIVE, Bounds
from pruner_zero.metric.expression import Call, Constant, Expression, Terminal
from pruner_zero.metric.operator import Operator, Shape
from pruner_zero.metric.terminals import TERMINALS

_LARGEST = sys.float_info.max


def is_tame(value: float) -> bool:
    """Whether multiplying by this number keeps values inside fp32's range."""
    return 1e-6 <= abs(value) <= 1e6


def bounds(expression: Expression, cache: dict[Expression, Bounds]) -> Bounds:
    """The bounds of an expression's values.

    cache: the results of earlier calls, which this one adds to.
    Source: interval arithmetic.
    """
    result = cache.get(expression)
    if result is None:
        result = _bounds(expression, cache)
        growth = result.growth
        if result.low == result.high and not is_tame(result.low):
            # A single extreme number, such as 2^-126.
            growth = math.inf
        # A bound that overflowed becomes the largest number, so that no later one is nan.
        result = Bounds(min(result.low, _LARGEST), max(result.high, -_LARGEST), growth)
        cache[expression] = result
    return result


def _bounds(expression: Expression, cache: dict[Expression, Bounds]) -> Bounds:
    if isinstance(expression, Constant):
        return Bounds(expression.value, expression.value, 0.0)
    if isinstance(expression, Terminal):
        lowest = {"positive": POSITIVE, "nonnegative": 0.0, "any": -math.inf}
        return Bounds(lowest[TERMINALS[expression.name].sign], math.inf, 1.0)
    assert isinstance(expression, Call)
    operator = expression.operator
    x, *others = (bounds(operand, cache) for operand in expression.operands)
    if operator.bounds is not None:
        result = operator.bounds(x, *others)
        assert isinstance(result, Bounds)
        return result
    if expression.exponent is not None:
        return x**expression.exponent
    if operator.factor is not None:
        return x * Bounds(operator.factor, operator.factor, 0.0)
    low, high = operator.range
    if expression.nonnegative or (operator.sign == "keeps" and x.low >= 0 and not others):
        low = max(low, 0.0)
    if operator.arity == 1 and operator.reach == "element":
        least, most = _at_the_ends(operator, x)
        low, high = max(low, least), min(high, most)
    return Bounds(low, high, _growth(operator, x, expression.operands[0].shape))


def _growth(operator: Operator, x: Bounds, shape: Shape) -> float:
    """The growth of a result with a scale of its own, whatever scale its operand has."""
    if operator.arity > 1 or not x.tame or operator.shape_rule == "scalar":
        return math.inf
    if operator.rescaling is not None:
        # Along an axis on which nothing varies, a rescaling gives only signs or nan.
        return 1.0 if _varies(shape, operator) else math.inf
    increases = operator.reach == "element" and operator.increasing != "never"
    if not increases or x.magnitudes[1] > operator.saturates:
        return math.inf
    return 1.0 if x.growth else 0.0


def _varies(shape: Shape, operator: Operator) -> bool:
    outputs, inputs = shape.value
    return {"row": inputs, "column": outputs, "matrix": outputs or inputs}[operator.reach]


def _at_the_ends(operator: Operator, x: Bounds) -> tuple[float, float]:
    """The results at the ends of the operand, where an increasing operator has its extremes."""
    ends = x.magnitudes if operator.parity == "even" else (x.low, x.high)
    if operator.increasing == "never" or (operator.increasing == "nonnegative" and ends[0] < 0):
        return -math.inf, math.inf
    low, high = operator.apply(torch.tensor([ends], dtype=torch.float64))[0].tolist()
    return (-math.inf if math.isnan(low) else low), (math.inf if math.isnan(high) else high)
