"""Shares of zeros that differ between matrices, by what a zero costs in each of them."""

from collections.abc import Mapping, Sequence
from statistics import NormalDist
from types import MappingProxyType

from pruner_zero.models.matrices import Matrix

# What a zero costs at 50 % beside one of the MLP, by the last part of a matrix's name, and how much
# more in the first seventh and the last fourteenth of the blocks. Found by hand on validation text
# of Qwen2.5-Coder-1.5B (benchmarks/why.md); other names, as of fused matrices, count as the MLP's.
COSTS: Mapping[str, float] = MappingProxyType(
    {"q_proj": 1 / 3, "k_proj": 4.5, "v_proj": 4.5, "o_proj": 3.0}
)
EDGE_COST = 1.5


def shares_by_role(matrices: Sequence[Matrix], sparsity: float) -> dict[str, int]:
    """The zeros in each row of `matrices`, by name, by the costs of their roles and blocks.

    Source: ours, as a rule; EvoPress (2410.14649) evolves the shares of each model, OWL
    (2310.05175) takes them from outliers.
    """
    depth = 1 + max(matrix.block for matrix in matrices)

    def cost(matrix: Matrix) -> float:
        edge = matrix.block < depth / 7 or matrix.block >= depth - depth / 14
        return COSTS.get(matrix.name.rpartition(".")[2], 1.0) * (EDGE_COST if edge else 1.0)

    return equal_margins(matrices, {matrix.name: cost(matrix) for matrix in matrices}, sparsity)


def equal_margins(
    matrices: Sequence[Matrix], costs: Mapping[str, float], sparsity: float
) -> dict[str, int]:
    """The zeros in each row of `matrices`, by name, at which one more costs the same in all.

    costs: of a zero in each matrix where all have the same share of zeros. The cost of one more is
    taken to grow with the share as the square of the cut of a normal distribution does. Of all
    weights at least the share `sparsity` becomes zero, and of no row more than (1 + sparsity) / 2.
    """
    wanted = sparsity * sum(matrix.weight.numel() for matrix in matrices)
    most, normal = (1 + sparsity) / 2, NormalDist()

    def zeros(level: float) -> dict[str, int]:
        counts = {}
        for matrix in matrices:
            share = 2 * normal.cdf(level / costs[matrix.name] ** 0.5) - 1
            counts[matrix.name] = round(min(share, most) * matrix.weight.shape[1])
        return counts

    def total(counts: Mapping[str, int]) -> int:
        return sum(counts[matrix.name] * matrix.weight.shape[0] for matrix in matrices)

    # Bisection: the counts grow with the level. A cut of 8 is a share of 1 in double precision.
    low, high = 0.0, 8 * max(costs.values()) ** 0.5
    for _ in range(60):
        level = (low + high) / 2
        if total(zeros(level)) < wanted:
            low = level
        else:
            high = level
    # Matrices of one cost reach a count at the same level: no more of them than are needed.
    counts, more = zeros(low), zeros(high)
    for name in more:
        if total(counts) >= wanted:
            break
        counts[name] = more[name]
    return counts
