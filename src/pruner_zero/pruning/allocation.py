"""How much of each matrix is pruned, worked out from the dense model block by block."""

from collections.abc import Iterable
from itertools import groupby

import torch
from torch import Tensor

from pruner_zero.models import Matrix
from pruner_zero.pruning.method import Method
from pruner_zero.pruning.scoring import score_matrix
from pruner_zero.pruning.statistics import Statistics
from pruner_zero.sparsity import (
    Allocation,
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


@torch.no_grad()
def allocated_pattern(method: Method, dense: Iterable[tuple[Matrix, Statistics]]) -> PerMatrix:
    """The pattern of each matrix; their zeros in total match the method's sparsity.

    dense: every matrix, with its weights in memory, and the statistics of the dense model that the
    allocation needs, block after block. Rules: "owl" as published, with the released defaults;
    "error" prunes every further weight where its `pruning_cost` under the method's own masks is
    least (ours). Raises PrunerZeroError where a given allocation is not of these matrices.
    """
    rule, sparsity = method.allocation, method.pattern.sparsity
    shapes: dict[str, tuple[int, int]] = {}
    blocks: dict[str, int] = {}
    outliers: dict[int, float] = {}
    curves: dict[str, dict[float, float]] = {}
    for block, matrices in groupby(dense, key=lambda pair: pair[0].block):
        scores: list[Tensor] = []
        for matrix, statistics in matrices:
            weight = matrix.weight
            shapes[matrix.name] = (weight.shape[0], weight.shape[1])
            blocks[matrix.name] = block
            if rule == "owl":
                scores.append(weight.float().abs() * statistics.values["X"])
            elif rule == "error":
                curves[matrix.name] = _costs(matrix, statistics, method)
        if scores:
            outliers[block] = outlier_share(scores)
    sizes = {name: rows * columns for name, (rows, columns) in shapes.items()}
    if isinstance(rule, Allocation):
        shares = rule
    elif rule == "owl":
        shares = owl(outliers, blocks, sizes, sparsity)
    else:
        shares = by_error(curves, sizes, sparsity)
    rounded = exact(shares, shapes, sparsity, "row" if method.scope == "row" else "matrix")
    patterns = {name: method.pattern.at(share) for name, share in rounded.sparsity.items()}
    return PerMatrix(patterns, sparsity)


def _costs(matrix: Matrix, dense: Statistics, method: Method) -> dict[float, float]:
    """What pruning the matrix costs, by sparsity."""
    assert dense.hessian is not None
    gram = dense.hessian.gram
    weight = matrix.weight.float()
    scores = score_matrix(matrix, dense, method.metric)
    if scores is None:
        scores = weight.abs()
    count = min(_ROWS, len(weight))
    rows = torch.linspace(0, len(weight) - 1, count).round().long().to(weight.device)
    G = dense.values.get("G")
    sensitivity = None if G is None else output_sensitivity(G[rows], gram)
    norms = row_errors(weight[rows], gram)
    costs = {}
    for sparsity in _GRID:
        mask = keep_mask(scores, method.pattern.at(sparsity), matrix.name)[rows]
        errors = row_errors(weight[rows].masked_fill(mask, 0), gram)
        costs[sparsity] = pruning_cost(errors, norms, sensitivity, len(weight) / count)
    return costs
