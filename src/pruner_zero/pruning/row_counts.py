"""Masks of a rank in the row times a number of the matrix, without scoring the whole model."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pruner_zero.metric.canonical.normal import factors, product
from pruner_zero.metric.expression import TERMINALS, Call, Expression
from pruner_zero.metric.operators import Operator, Shape
from pruner_zero.models.matrices import Matrix
from pruner_zero.sparsity.pattern import Lazy, Pattern
from pruner_zero.sparsity.selection import Unstructured, keep_highest
from pruner_zero.sparsity.threshold import comparable, pruned_count


@dataclass(frozen=True)
class RowCounts(Pattern):
    """A number of zeros in the rows of each matrix, those of the lowest scores.

    zeros: by matrix name, how many in each row, and how many of the first rows have one more; a
    matrix that is not there has the share of all.
    """

    sparsity: float
    zeros: Mapping[str, tuple[int, int]] = field(repr=False, hash=False)

    def choose(self, scores: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return Lazy(scores, lambda name: self._mask(comparable(scores[name], name), name))

    def _mask(self, scores: Tensor, name: str) -> Tensor:
        count, further = self.zeros.get(name, (pruned_count(scores.shape[1], self.sparsity), 0))
        if not further:
            return keep_highest(scores, count)
        first = keep_highest(scores[:further], count + 1)
        return torch.cat([first, keep_highest(scores[further:], count)])

    def within_matrices(self) -> Unstructured:
        return Unstructured(self.sparsity, "matrix")


def by_rank(expression: Expression) -> tuple[Call, Expression] | None:
    """The ranks in a row, such as row_odds(x), and the factor of the matrix that multiplies them.

    None for any other expression. The order of row_odds(x)^e * c is that of row_odds(x) * c^(1/e).
    """
    coefficient, bases = factors(expression)
    calls = [base for base in bases if isinstance(base, Call)]
    ranks = [base for base in calls if base.operator.ranks and base.operator.reach == "row"]
    if len(ranks) != 1 or coefficient <= 0 or bases[ranks[0]] <= 0:
        return None
    rest = {base: power / bases[ranks[0]] for base, power in bases.items() if base != ranks[0]}
    factor = product(1.0, rest)
    shapes = {TERMINALS[name].shape for name in factor.terminals}
    if shapes - {Shape.SCALAR} or not all(base.nonnegative for base in rest):
        return None
    return ranks[0], factor


def row_counts(
    matrices: Sequence[Matrix],
    ranks: Operator,
    factor: Callable[[Matrix], float],
    sparsity: float,
) -> RowCounts:
    """The zeros of `matrices` where the `ranks` in a row, times `factor`, compete.

    Exactly floor(n · sparsity) of all n weights become zero, equal scores by lowest matrix, row,
    column: what the threshold of all scores gives. Each row of a matrix has the same ranks, so that
    one row and the number of rows stand for it. Source: ours.
    """
    values, rows, owners = [], [], []
    for number, matrix in enumerate(matrices):
        outputs, inputs = matrix.weight.shape
        of_row = ranks.apply(torch.arange(inputs, dtype=torch.float64)[None])[0]
        values.append(of_row * factor(matrix))
        rows.append(torch.full((inputs,), outputs))
        owners.append(torch.full((inputs,), number))
    order = torch.cat(values).argsort(stable=True)
    counts, owner = torch.cat(rows)[order].cumsum(0), torch.cat(owners)[order]
    wanted = pruned_count(int(counts[-1]), sparsity)
    whole = int(torch.searchsorted(counts, wanted, right=True))
    zeros = owner[:whole].bincount(minlength=len(matrices)).tolist()
    left = wanted - (int(counts[whole - 1]) if whole else 0)
    partly = int(owner[whole]) if left else -1
    return RowCounts(
        sparsity,
        {m.name: (zeros[i], left if i == partly else 0) for i, m in enumerate(matrices)},
    )
