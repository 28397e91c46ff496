"""The terminals of expressions: statistics of one weight matrix, and what is known of each."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from pruner_zero.metric.operator import Shape


@dataclass(frozen=True, slots=True)
class Statistic:
    """The statistic that a terminal stands for.

    shape: its form beside a weight matrix of shape (out, in).
    sign: positive (never zero), nonnegative, or any.
    cost: what collecting it costs, in nodes of an expression, for the complexity of a metric.
    magnitude: the terminal that is its magnitude, if it can be negative.
    collected: the statistic that calibration collects for it, by name; None for a terminal that
        the weight alone gives. Where the statistic has the terminal's name, it is the terminal's
        value.
    """

    shape: Shape
    meaning: str
    sign: Literal["positive", "nonnegative", "any"] = "nonnegative"
    cost: int = 0
    magnitude: str | None = None
    collected: str | None = None


TERMINALS: Mapping[str, Statistic] = MappingProxyType(
    {
        "W": Statistic(Shape.MATRIX, "absolute weight"),
        "G": Statistic(
            Shape.MATRIX,
            "sqrt(Σ_n (100·g_n)²) over calibration windows n, g_n the gradient of the mean "
            "next-token loss",
            cost=3,
            collected="G",
        ),
        "X": Statistic(
            Shape.ROW,
            "L2 norm of each input channel: sqrt(mean over samples of Σ_tokens x²)",
            cost=1,
            collected="X",
        ),
        "O": Statistic(
            Shape.COLUMN,
            "root mean squared gradient at each output channel: sqrt(n · mean over the tokens of n "
            "calibration windows of (100·d)²), d the gradient of the window's mean next-token loss "
            "at a token's output, so that O * X is the Kronecker-factored estimate of G",
            cost=2,
            collected="O",
        ),
        "D": Statistic(
            Shape.ROW,
            "diagonal U_jj of the upper Cholesky factor of the inverse of the damped Hessian "
            "2XᵀX/n, so that sqr(W) / sqr(D) is SparseGPT's score",
            sign="positive",
            cost=2,
            collected="gram",
        ),
        "S": Statistic(Shape.MATRIX, "signed weight", sign="any", magnitude="W"),
    }
)


def collected_for(names: Iterable[str]) -> frozenset[str]:
    """The statistics that calibration has to collect for the terminals of these names."""
    collected = {TERMINALS[name].collected for name in names}
    return frozenset(statistic for statistic in collected if statistic is not None)
