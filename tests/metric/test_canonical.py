"""The canonical form: it keeps the order inside every group, and finds what it should."""

from collections.abc import Mapping

import torch
from hypothesis import strategies as st
from torch import Tensor

from pruner_zero.metric import (
    OPERATORS,
    Call,
    Constant,
    Expression,
    Shape,
    Terminal,
)
from pruner_zero.metric.canonical import Scope
from pruner_zero.sparsity import SCOPES
from tests.metric.strategies import (
    expressions,
    tame_constants,
    terminals,
    terminals_of,
)

WIDTH = 7
scopes = st.sampled_from(SCOPES)
searched = [name for name in OPERATORS if name != "power"]
anything = st.one_of(
    expressions(),
    expressions(leaves=terminals | tame_constants),
    expressions(searched, terminals),
)


def values(expression: Expression, given: Mapping[str, Tensor]) -> Tensor:
    """The expression in float64, where rounding hides less than in the scores' fp32."""

    def value(node: Expression) -> Tensor:
        if isinstance(node, Terminal):
            return given[node.name]
        if isinstance(node, Constant):
            return torch.tensor([[node.value]], dtype=torch.float64)
        assert isinstance(node, Call)
        return node.operator.apply(*[value(operand) for operand in node.operands])

    shape = Shape.MATRIX.sizes((given["W"].shape[0], WIDTH))
    return value(expression).expand(shape).clone()


def statistics(rows: int, seed: int, scale: float = 1.0) -> dict[str, Tensor]:
    double = {name: t.double() * scale for name, t in terminals_of(rows, WIDTH, seed).items()}
    # Some exact zeros, as dead channels and pruned weights have them.
    for name in ("W", "S", "G"):
        double[name][0, 1] = 0
    double["X"][0, 2] = 0
    return double


def grouped(matrices: list[Tensor], scope: Scope) -> list[Tensor]:
    if scope == "row":
        return [row for matrix in matrices for row in matrix]
    if scope == "global":
        return [torch.cat([matrix.flatten() for matrix in matrices])]
    if scope == "cumulative":
        # What is compared: every score's share of its row's sum.
        shares = [matrix / matrix.sum(1, keepdim=True) for matrix in matrices]
        return [share.flatten() for share in shares]
    return [matrix.flatten() for matrix in matrices]


def gaps(group: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The sign of every pairwise difference, which are clear of rounding, and which are none."""
    difference = group[:, None] - group[None]
    size = torch.maximum(group.abs()[:, None], group.abs()[None])
    # The second bound: differences of large values leave rounding behind.
    clear = (difference.abs() > 1e-6 * size) & (difference.abs() > 1e-12 * group.abs().max())
    return difference.sign(), clear, difference == 0


def assert_same_order(one: Expression, other: Expression, scope: Scope, seed: int) -> None:
    given = [statistics(4, seed), statistics(3, seed + 1, scale=1.7)]
    first, second = ([values(e, tensors) for tensors in given] for e in (one, other))
    usable = all(matrix.isfinite().all() and matrix.abs().max() < 1e100 for matrix in first)
    if scope == "cumulative":
        # Negative scores are refused there.
        usable = usable and all(
            (matrix >= 0).all() and (matrix.sum(1) > 0).all() for matrix in first
        )
    if not usable:
        return
    for a, b in zip(grouped(first, scope), grouped(second, scope), strict=True):
        (sign_a, clear_a, same_a), (sign_b, clear_b, same_b) = gaps(a), gaps(b)
        both = clear_a & clear_b
        assert (sign_a[both] == sign_b[both]).all(), (str(one), str(other))
        # What ties to the last digits has not become different, nor the reverse.
        assert not (same_a & clear_b).any(), (str(one), str(other))
        assert not (same_b & clear_a).any(), (str(one), str(other))
