"""How much of each matrix is pruned, worked out from the dense model block by block."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from pruner_zero.models import Matrix
from pruner_zero.pruning.method import Method
from pruner_zero.pruning.scoring import score_matrix
from pruner_zero.pruning.statistics import Statistics
from pruner_zero.sparsity import (
    Allocation,
    Pattern,
    Unstructured,
    by_error,
    exact,
    keep_mask,
    outlier_share,
    owl,
    uniform,
)
from pruner_zero.sparsity.layer_error import output_sensitivity, pruning_cost, row_errors

# The sparsities at which a matrix's error is measured, and the rows that stand for all of them.
_GRID = (0.1, 0.2, 0.3, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
_ROWS = 64


@dataclass
class Allocator:
    """Looks at one block of the dense model after the other, then shares out the zeros.

    Rules: "owl" as published, with the released defaults; "error" prunes
    every further weight where its `pruning_cost` under the method's own masks is least (ours).
    """

    method: Method
    shapes: dict[str, tuple[int, int]] = field(default_factory=dict)
    blocks: dict[str, int] = field(default_factory=dict)
    outliers: dict[int, float] = field(default_factory=dict)
    curves: dict[str, list[float]] = field(default_factory=dict)

    @torch.no_grad()
    def see(
        self, block: int, matrices: Sequence[Matrix], statistics: Mapping[str, Statistics]
    ) -> None:
        """Take in the matrices of one block with their dense statistics."""
        rule = self.method.allocation
        scores = []
        for matrix in matrices:
            weight = matrix.weight.float()
            self.shapes[matrix.name] = (weight.shape[0], weight.shape[1])
            self.blocks[matrix.name] = block
            known = statistics[matrix.name]
            if rule == "owl" and known.X is not None:
                scores.append(weight.abs() * known.X)
            elif rule == "error":
                self.curves[matrix.name] = self._curve(matrix, known)
        if scores:
            self.outliers[block] = outlier_share(scores)

    def patterns(self) -> dict[str, Pattern]:
        """The pattern of each matrix by name, their total exact in the method's groups.

        Raises PrunerZeroError where a given allocation is not of these matrices.
        """
        groups = self.method.pattern
        assert isinstance(groups, Unstructured)
        shares = self._allocation(groups).sparsity
        return {name: Unstructured(share, groups.scope) for name, share in shares.items()}

    def _allocation(self, groups: Unstructured) -> Allocation:
        rule, sparsity = self.method.allocation, groups.sparsity
        sizes = {name: rows * columns for name, (rows, columns) in self.shapes.items()}
        if isinstance(rule, Allocation):
            shares = rule
        elif rule == "owl":
            shares = owl(self.outliers, self.blocks, sizes, sparsity)
        elif rule == "error":
            curves = {name: dict(zip(_GRID, own, strict=True)) for name, own in self.curves.items()}
            shares = by_error(curves, sizes, sparsity)
        else:
            shares = uniform(sizes, sparsity)
        return exact(shares, self.shapes, sparsity, "row" if groups.scope == "row" else "matrix")

    def _curve(self, matrix: Matrix, known: Statistics) -> list[float]:
        """What pruning the matrix costs at each sparsity of the grid."""
        assert known.hessian is not None
        assert self.method.scope is not None
        gram = known.hessian.gram
        weight = matrix.weight.float()
        scores = score_matrix(matrix, known, self.method.metric)
        if scores is None:
            scores = weight.abs()
        count = min(_ROWS, len(weight))
        rows = torch.linspace(0, len(weight) - 1, count).round().long().to(weight.device)
        sensitivity = None if known.G is None else output_sensitivity(known.G[rows], gram)
        norms = row_errors(weight[rows], gram)
        costs = []
        for share in _GRID:
            pattern = Unstructured(share, self.method.scope)
            mask = keep_mask(scores, pattern, matrix.name)[rows]
            errors = row_errors(weight[rows].masked_fill(mask, 0), gram)
            costs.append(pruning_cost(errors, norms, sensitivity, len(weight) / count))
        return costs
