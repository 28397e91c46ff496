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
    Granularity,
    PerMatrix,
    by_error,
    exact,
    keep_mask,
    outlier_share,
    owl,
)
from pruner_zero.sparsity.layer_error import output_sensitivity, pruning_cost, row_errors

# The sparsities at which a matrix's error is measured, and the rows that stand for all of them.
_GRID = (0.1, 0.2, 0.3, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
_ROWS = 64


@dataclass
class Allocator:
    """Reads one block of the dense model after the other, then allocates the sparsity.

    Rules: "owl" as published, with the released defaults; "error" prunes every further weight
    where its `pruning_cost` under the method's own masks is least (ours).
    """

    method: Method
    shapes: dict[str, tuple[int, int]] = field(default_factory=dict)
    blocks: dict[str, int] = field(default_factory=dict)
    outliers: dict[int, float] = field(default_factory=dict)
    curves: dict[str, dict[float, float]] = field(default_factory=dict)

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
            dense = statistics[matrix.name]
            if rule == "owl":
                scores.append(weight.abs() * dense.values["X"])
            elif rule == "error":
                self.curves[matrix.name] = self._curve(matrix, dense)
        if scores:
            self.outliers[block] = outlier_share(scores)

    def pattern(self) -> PerMatrix:
        """The pattern of each matrix; their zeros together are those of the method's sparsity.

        Raises PrunerZeroError where a given allocation is not of these matrices.
        """
        rule, sparsity = self.method.allocation, self.method.pattern.sparsity
        sizes = {name: rows * columns for name, (rows, columns) in self.shapes.items()}
        if isinstance(rule, Allocation):
            shares = rule
        elif rule == "owl":
            shares = owl(self.outliers, self.blocks, sizes, sparsity)
        else:
            shares = by_error(self.curves, sizes, sparsity)
        granularity: Granularity = "row" if self.method.scope == "row" else "matrix"
        rounded = exact(shares, self.shapes, sparsity, granularity).sparsity
        at = self.method.pattern.at
        return PerMatrix({name: at(share) for name, share in rounded.items()}, sparsity)

    def _curve(self, matrix: Matrix, dense: Statistics) -> dict[float, float]:
        """What pruning the matrix costs, by sparsity."""
        assert dense.hessian is not None
        gram = dense.hessian.gram
        weight = matrix.weight.float()
        scores = score_matrix(matrix, dense, self.method.metric)
        if scores is None:
            scores = weight.abs()
        count = min(_ROWS, len(weight))
        rows = torch.linspace(0, len(weight) - 1, count).round().long().to(weight.device)
        G = dense.values.get("G")
        sensitivity = None if G is None else output_sensitivity(G[rows], gram)
        norms = row_errors(weight[rows], gram)
        costs = {}
        for sparsity in _GRID:
            mask = keep_mask(scores, self.method.pattern.at(sparsity), matrix.name)[rows]
            errors = row_errors(weight[rows].masked_fill(mask, 0), gram)
            costs[sparsity] = pruning_cost(errors, norms, sensitivity, len(weight) / count)
        return costs
