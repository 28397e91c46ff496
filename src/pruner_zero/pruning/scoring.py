"""From the statistics of a matrix to its scores and to its pruned weights."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from pruner_zero.errors import PrunerZeroError
from pruner_zero.metric import Metric, ScoreError
from pruner_zero.models import Matrix
from pruner_zero.pruning.method import Method
from pruner_zero.pruning.record import MatrixRecord
from pruner_zero.sparsity import check_width, hessian_diagonal, keep_mask, sparsegpt


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
) -> tuple[Tensor, str | None]:
    """The scores (out, in) of `matrix`, fp32, and a note where they are not the metric's own.

    Where calibration never reached the matrix (an expert no token chose) the metric cannot
    tell its weights apart, and their magnitude decides. Raises ScoreError with the name of
    the matrix where the metric itself fails.
    """
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
        return metric.score(terminals), None
    except ScoreError as error:
        silent = statistics.silent()
        if silent:
            return terminals["W"], f"calibration left {', '.join(silent)} zero: scored by magnitude"
        raise PrunerZeroError(f"{metric} cannot score {matrix.name}: {error.reason}") from error


def prune_matrix(
    matrix: Matrix, statistics: Statistics, method: Method, damping: float
) -> MatrixRecord:
    """Score, mask and, if the method says so, update one matrix of the model in place."""
    mask, note = None, None
    if not method.chooses_while_updating:
        scores, note = score_matrix(matrix, statistics, method.metric, damping)
        mask = keep_mask(scores, method.pattern, matrix.name)
    return apply_mask(matrix, mask, statistics, method, damping, note)


def apply_mask(
    matrix: Matrix,
    mask: Tensor | None,
    statistics: Statistics,
    method: Method,
    damping: float,
    note: str | None = None,
) -> MatrixRecord:
    """Zero what `mask` (out, in), True = kept, prunes; update the rest if the method says so.

    mask None: the update chooses it. Writes to the model.
    """
    used = None
    if method.update == "obs":
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
        used = result.damping
        if used != damping:
            extra = f"damping raised to {used:g} for the Cholesky factor"
            note = f"{note}; {extra}" if note else extra
    else:
        assert mask is not None
        matrix.weight.masked_fill_(~mask, 0)
    zeros = int((matrix.weight == 0).sum())
    shape = (matrix.weight.shape[0], matrix.weight.shape[1])
    return MatrixRecord(matrix.name, matrix.block, shape, zeros, used, note)


def check_shapes(matrices: Sequence[Matrix], method: Method) -> None:
    """Raise PrunerZeroError before any work where the pattern does not fit a matrix."""
    for matrix in matrices:
        check_width(matrix.weight.shape[1], method.pattern, matrix.name)
