"""Bounds of the values of an expression that are known without evaluating it."""

import math
from dataclasses import dataclass

# Statistics lie between about 1e-4 and 1e4, so fp32 holds their products up to this degree.
_HIGHEST_GROWTH = 8.0
# The results of a higher root are so close to 1 that fp32 rounds many of them to the same value.
_LOWEST_EXPONENT = 1 / 16
# A lower bound above zero whose exact value is not known.
POSITIVE = 1e-30


@dataclass(frozen=True, slots=True)
class Bounds:
    """The interval that holds all values, and how far their spread exceeds that of a statistic.

    The arithmetic operators give the bounds of elementwise results (interval arithmetic).

    growth: the degree as a product of statistics, 0 for a single number. Infinite where values
        may overflow or underflow fp32, be nan, or all be zero for some usual statistics.
    """

    low: float
    high: float
    growth: float

    @property
    def tame(self) -> bool:
        """Whether fp32 computes the values well, and they are finite and not all zero."""
        return self.growth <= _HIGHEST_GROWTH

    @property
    def magnitudes(self) -> tuple[float, float]:
        """The lowest and the highest magnitude."""
        return max(self.low, -self.high, 0.0), max(abs(self.low), abs(self.high))

    def __neg__(self) -> "Bounds":
        return Bounds(-self.high, -self.low, self.growth)

    def __add__(self, other: "Bounds") -> "Bounds":
        growth = max(self.growth, other.growth)
        return Bounds(self.low + other.low, self.high + other.high, growth)

    def __sub__(self, other: "Bounds") -> "Bounds":
        return self + -other

    def __mul__(self, other: "Bounds") -> "Bounds":
        # Values are finite, so zero times an infinite bound is zero.
        ends = [
            x * y if x and y else 0.0
            for x in (self.low, self.high)
            for y in (other.low, other.high)
        ]
        return Bounds(min(ends), max(ends), self.growth + other.growth)

    def __truediv__(self, other: "Bounds") -> "Bounds":
        if other.low > 0:
            return self * Bounds(1 / other.high, 1 / other.low, other.growth)
        nonnegative = self.low >= 0 and other.low >= 0
        return Bounds(0.0 if nonnegative else -math.inf, math.inf, math.inf)

    def __pow__(self, exponent: float) -> "Bounds":
        """The bounds of |x|^exponent."""
        low, high = self.magnitudes
        growth = math.inf if abs(exponent) < _LOWEST_EXPONENT else abs(exponent) * self.growth
        if exponent < 0:
            low, high = (1 / high if high else math.inf), (1 / low if low else math.inf)
            growth = growth if math.isfinite(high) else math.inf
        return Bounds(_power(low, abs(exponent)), _power(high, abs(exponent)), growth)

    def over_norm(self, other: "Bounds") -> "Bounds":
        """The bounds of x / ‖y‖."""
        low = (POSITIVE if self.low > 0 and other.tame else 0.0) if self.low >= 0 else -math.inf
        return Bounds(low, math.inf, self.growth if other.tame else math.inf)

    def minimum(self, other: "Bounds") -> "Bounds":
        """The bounds of the elementwise minimum."""
        # A single number may lie beyond all values it is compared with: then it is the result.
        numbers = not (self.growth and other.growth)
        growth = math.inf if numbers else max(self.growth, other.growth)
        return Bounds(min(self.low, other.low), min(self.high, other.high), growth)

    def maximum(self, other: "Bounds") -> "Bounds":
        """The bounds of the elementwise maximum."""
        return -(-self).minimum(-other)


def _power(value: float, exponent: float) -> float:
    try:
        return float(value**exponent)
    except OverflowError:
        return math.inf
