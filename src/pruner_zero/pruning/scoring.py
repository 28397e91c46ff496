"""From the statistics of a matrix to its scores and to its pruned weights."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from pruner_zero.errors import PrunerZeroError
from pruner_zero.metric import Metric, ScoreError
from pruner_zero.models import Matrix
from pruner_zero.pruning.method import Method
from pruner_zero.pruning.record import MatrixRecord
from pruner_zero.sparsity import (
    Pattern,
    Unstructured,
    check_width,
    hessian_diagonal,
    keep_mask,
    sparsegpt,
)


@dataclass(frozen=True)
class Statistics:
    """What calibration knows of one matrix, each None where it was not collected."""

    X: Tensor | None = None
    G: Tensor | None = None
    gram: Tensor | None = None

    def silent(self) -> list[str]:
        """The names of collected statistics that are zero throughout."""
        collected = {"X": self.X, "G": self.G, "XᵀX": self.gram}
        return [name for name, one in collected.items() if one is not None and not one.any()]


def score_matrix(
    matrix: Matrix, statistics: Statistics, metric: Metric, damping: float
) -> Tensor | None:
    """The scores (out, in) of `matrix` by `metric`, fp32, the lowest pruned first.

    None where calibration never reached the matrix, as an expert that no token chose: its
    statistics tell no weights apart. Raises PrunerZeroError naming the matrix where the
    metric itself fails.
    """
    silent = statistics.silent()
    if "X" in silent or "XᵀX" in silent:
        return None
    weight = matrix.weight.float()
    terminals = {"W": weight.abs()}
    if "S" in metric.needs:
        terminals["S"] = weight
    if "G" in metric.needs and statistics.G is not None:
        terminals["G"] = statistics.G
    if "X" in metric.needs and statistics.X is not None:
        terminals["X"] = statistics.X
    if "H" in metric.needs and statistics.gram is not None:
        terminals["H"] = hessian_diagonal(statistics.gram, damping, name=matrix.name)
    try:
        return metric.score(terminals)
    except ScoreError as error:
        if silent:
            return None
        raise PrunerZeroError(f"{metric} cannot score {matrix.name}: {error.reason}") from error


def prune_matrix(
    matrix: Matrix,
    statistics: Statistics,
    method: Method,
    damping: float,
    mask: Tensor | None = None,
) -> MatrixRecord:
    """Score, mask and, if the method says so, update one matrix of the model in place.

    mask (out, in), True = kept, where it is known already. A matrix that calibration never
    reached is pruned by magnitude without an update: the record's note says so. Raises
    PrunerZeroError naming the matrix.
    """
    choosing = method.chooses_while_updating and not statistics.silent()
    if mask is None and not choosing:
        scores = score_matrix(matrix, statistics, method.metric, damping)
        if scores is None:
            mask = keep_mask(matrix.weight.float().abs(), within_matrix(method), matrix.name)
            silent = " and ".join(statistics.silent())
            return _zero(matrix, mask, note=f"calibration left {silent} zero: pruned by magnitude")
        mask = keep_mask(scores, method.pattern, matrix.name)
    if method.update == "none":
        assert mask is not None
        return _zero(matrix, mask)
    if statistics.gram is None:
        raise ValueError("an update needs the Gram matrix")
    result = sparsegpt(
        matrix.weight.float(),
        statistics.gram,
        method.pattern,
        mask=mask,
        damping=damping,
        name=matrix.name,
    )
    matrix.weight.copy_(result.weight)
    raised = result.damping != damping
    note = f"damping raised to {result.damping:g} for the Cholesky factor" if raised else None
    return _zero(matrix, result.mask, result.damping, note)


def within_matrix(method: Method) -> Pattern:
    """The pattern of `method`, or the same share of one matrix where all of them compete."""
    if method.scope == "global":
        return Unstructured(method.pattern.sparsity, "matrix")
    return method.pattern


def _zero(
    matrix: Matrix, mask: Tensor, damping: float | None = None, note: str | None = None
) -> MatrixRecord:
    """Write exact zeros where `mask` prunes, and count all there are."""
    weight = matrix.weight
    # A weight that was −0.0, or became it in a narrow dtype, counts as pruned: make it 0.0 too.
    zero = ~mask | (weight == 0)
    weight.masked_fill_(zero, 0)
    shape = (weight.shape[0], weight.shape[1])
    return MatrixRecord(matrix.name, matrix.block, shape, int(zero.sum()), damping, note)


def check_shapes(matrices: Sequence[Matrix], method: Method) -> None:
    """Raise PrunerZeroError before any work where the pattern does not fit a matrix."""
    for matrix in matrices:
        check_width(matrix.weight.shape[1], method.pattern, matrix.name)
