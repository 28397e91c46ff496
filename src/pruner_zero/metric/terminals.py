"""What an expression can ask for: the statistics of one weight matrix."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from pruner_zero.metric.operators import Shape


@dataclass(frozen=True, slots=True)
class Statistic:
    """What a terminal stands for: the form, the meaning, and whether it is never negative."""

    shape: Shape
    meaning: str
    nonnegative: bool = True


TERMINALS: Mapping[str, Statistic] = MappingProxyType(
    {
        "W": Statistic(Shape.MATRIX, "absolute weight"),
        "G": Statistic(
            Shape.MATRIX,
            "sqrt(Σ_n (100·g_n)²) over calibration windows n, g_n the gradient of the mean "
            "next-token loss",
        ),
        "X": Statistic(
            Shape.ROW,
            "L2 norm of each input channel: sqrt(mean over samples of Σ_tokens x²)",
        ),
        "D": Statistic(
            Shape.ROW,
            "diagonal U_jj of the upper Cholesky factor of the inverse of the damped Hessian "
            "2XᵀX/n, so that sqr(W) / sqr(D) is SparseGPT's score",
        ),
        "S": Statistic(Shape.MATRIX, "signed weight", nonnegative=False),
    }
)
