"""What can be told of an expression's values without evaluating it."""

import math
import sys
from typing import NamedTuple

from pruner_zero.metric.expression import Call, Constant, Expression, Terminal
from pruner_zero.metric.operators import Shape

# Statistics lie between about 1e-4 and 1e4, so up to this degree fp32 holds their products.
_HIGHEST_GROWTH = 8.0
# A root so high that fp32 takes most results for one.
_LOWEST_EXPONENT = 1 / 16
# fp32's exp overflows at 88.7 and is zero below -103.
_EXP_LIMIT = 80.0
# Stands for "above zero": D cannot vanish, since the Hessian is damped.
_POSITIVE = 1e-30
_LARGEST = sys.float_info.max


class Facts(NamedTuple):
    """Bounds of all values, and how much they multiply the spread of the statistics.

    growth: the degree as a product of statistics; infinite where values may overflow or
        underflow fp32, be nan, or all vanish for some usual statistics.
    """

    low: float
    high: float
    growth: float

    @property
    def tame(self) -> bool:
        """fp32 computes it well, and it is neither constant zero nor non-finite."""
        return self.growth <= _HIGHEST_GROWTH


def is_tame(value: float) -> bool:
    """Whether a factor of this size leaves fp32's range alone."""
    return 1e-6 <= abs(value) <= 1e6


def facts(expression: Expression, known: dict[Expression, Facts]) -> Facts:
    """The facts of an expression, given that W, G, X and D are never negative.

    `known` is the memory of earlier calls. Source: ours, interval arithmetic.
    """
    found = known.get(expression)
    if found is None:
        low, high, growth = _facts(expression, known)
        if low == high and not is_tame(low):
            # One number, such as 2^-126.
            growth = math.inf
        # A bound that overflowed is the largest number, so that no later one becomes nan.
        found = known[expression] = Facts(min(low, _LARGEST), max(high, -_LARGEST), growth)
    return found


def _facts(expression: Expression, known: dict[Expression, Facts]) -> tuple[float, float, float]:
    if isinstance(expression, Constant):
        return expression.value, expression.value, 0.0
    if isinstance(expression, Terminal):
        positive = _POSITIVE if expression.name == "D" else 0.0
        return positive if expression.nonnegative else -math.inf, math.inf, 1.0
    assert isinstance(expression, Call)
    x = facts(expression.operands[0], known)
    # One for what has a scale of its own, whatever it is computed from.
    own = 1.0 if x.tame else math.inf
    name = expression.operator.name
    match name:
        case "skp":
            return x
        case "neg":
            return -x.high, -x.low, x.growth
        case "abs":
            return *_magnitudes(x), x.growth
        case "sqr" | "pow":
            return _power(x, 2.0)
        case "sqrt":
            return _power(x, 0.5)
        case "power":
            assert expression.exponent is not None
            return _power(x, expression.exponent)
        case "log":
            low, high = _magnitudes(x)
            return math.log(low + 0.001), math.log(high + 0.001), own
        case "exp":
            limit = expression.operator.saturates
            inside = max(-x.low, x.high) <= _EXP_LIMIT
            bounds = math.exp(min(x.low, limit)), math.exp(min(x.high, limit))
            return *bounds, own if inside else math.inf
        case "tanh":
            limit = expression.operator.saturates
            inside = max(-x.low, x.high) <= limit
            return math.tanh(x.low), math.tanh(x.high), own if inside else math.inf
        case "small":
            return 0.0, 1.0, math.inf
        case "mms" | "zsn":
            bounds = (0.0, 1.0) if name == "mms" else (-math.inf, math.inf)
            return *bounds, own if expression.shape is not Shape.SCALAR else math.inf
        case "row_share" | "row_normalize" | "column_share" | "column_normalize":
            # Along an axis on which nothing varies only signs are left.
            along = expression.shape.value[1 if expression.operator.reach == "row" else 0]
            return 0.0 if x.low >= 0 else -1.0, 1.0, own if along else math.inf
    if len(expression.operands) == 1:
        # An operator of a plug-in, of which only its own facts are known.
        return 0.0 if expression.nonnegative else -math.inf, math.inf, math.inf
    y = facts(expression.operands[1], known)
    both = max(x.growth, y.growth)
    match name:
        case "add":
            return x.low + y.low, x.high + y.high, both
        case "sub":
            return x.low - y.high, x.high - y.low, both
        case "mul":
            return *_product(x[:2], y[:2]), x.growth + y.growth
        case "div":
            low = (_POSITIVE if x.low > 0 and y.tame else 0.0) if x.low >= 0 else -math.inf
            return low, math.inf, x.growth if y.tame else math.inf
        case "quotient":
            if y.low > 0:
                return *_product(x[:2], (1 / y.high, 1 / y.low)), x.growth + y.growth
            return 0.0 if x.low >= 0 and y.low >= 0 else -math.inf, math.inf, math.inf
        case "min" | "max":
            # A number may lie beyond all the values it is compared with.
            scalar = any(operand.shape is Shape.SCALAR for operand in expression.operands)
            choose = min if name == "min" else max
            return choose(x.low, y.low), choose(x.high, y.high), math.inf if scalar else both
    return -math.inf, math.inf, math.inf


def _magnitudes(x: Facts) -> tuple[float, float]:
    return max(x.low, -x.high, 0.0), max(abs(x.low), abs(x.high))


def _power(x: Facts, exponent: float) -> tuple[float, float, float]:
    low, high = _magnitudes(x)
    growth = math.inf if abs(exponent) < _LOWEST_EXPONENT else abs(exponent) * x.growth
    if exponent < 0:
        low, high = (1 / high if high else math.inf), (1 / low if low else math.inf)
        growth = growth if math.isfinite(high) else math.inf
    return _raise(low, abs(exponent)), _raise(high, abs(exponent)), growth


def _raise(value: float, exponent: float) -> float:
    try:
        return float(value**exponent)
    except OverflowError:
        return math.inf


def _product(x: tuple[float, float], y: tuple[float, float]) -> tuple[float, float]:
    # Infinite ends are never reached, so that zero times one is zero.
    ends = [a * b if a and b else 0.0 for a in x for b in y]
    return min(ends), max(ends)
