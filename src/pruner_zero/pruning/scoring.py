"""From the statistics of a matrix to its scores and to its pruned weights."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from pruner_zero.errors import PrunerZeroError
from pruner_zero.metric import Call, Metric, ScoreError, evaluate
from pruner_zero.models import Matrix
from pruner_zero.pruning.method import Method
from pruner_zero.pruning.record import MatrixRecord
from pruner_zero.pruning.statistics import Statistics
from pruner_zero.sparsity import (
    BLOCK_COLUMNS,
    Layer,
    Pattern,
    Scorer,
    Unstructured,
    check_width,
    keep_mask,
    plan,
    run_steps,
    used_damping,
)


def score_matrix(matrix: Matrix, statistics: Statistics, metric: Metric) -> Tensor | None:
    """The scores (out, in) of `matrix` by `metric`, fp32, the lowest pruned first.

    None where calibration never reached the matrix, as an expert that no token chose: its
    statistics do not tell its weights apart. Raises PrunerZeroError naming the matrix where the
    metric itself fails.
    """
    silent = statistics.silent()
    if "X" in silent or "XᵀX" in silent:
        return None
    try:
        return metric.score(_terminals(matrix, statistics, metric))
    except ScoreError as error:
        if silent:
            return None
        raise PrunerZeroError(f"{metric} cannot score {matrix.name}: {error.reason}") from error


def _terminals(matrix: Matrix, statistics: Statistics, metric: Metric) -> dict[str, Tensor]:
    weight = matrix.weight.float()
    terminals = {"W": weight.abs()}
    if "S" in metric.needs:
        terminals["S"] = weight
    if "G" in metric.needs and statistics.G is not None:
        terminals["G"] = statistics.G
    if "X" in metric.needs and statistics.X is not None:
        terminals["X"] = statistics.X
    if "D" in metric.needs and statistics.hessian is not None:
        terminals["D"] = statistics.hessian.diagonal
    return terminals


def sweep_scorer(matrix: Matrix, statistics: Statistics, metric: Metric) -> Scorer:
    """The metric as the sweep calls it: on some columns, with the weights as updated so far.

    G, X and D stay as calibration collected them. A metric whose operators look beyond a column
    sees the whole matrix, which is scored anew for every 128 columns only.
    """
    collected = _terminals(matrix, statistics, metric)
    local = all(
        node.operator.reach in ("element", "column")
        for node in metric.expression.walk()
        if isinstance(node, Call)
    )
    whole: dict[int, Tensor] = {}

    def score(weight: Tensor, columns: slice) -> Tensor:
        if local:
            return _evaluate(metric, collected, weight, columns)
        block = columns.start // BLOCK_COLUMNS
        if block not in whole:
            whole.clear()
            whole[block] = _evaluate(metric, collected, weight, slice(None))
        return whole[block][:, columns]

    return score


def _evaluate(
    metric: Metric, collected: dict[str, Tensor], weight: Tensor, columns: slice
) -> Tensor:
    current = {"W": weight[:, columns].abs(), "S": weight[:, columns]}
    fixed = {name: value[:, columns] for name, value in collected.items() if name not in current}
    return evaluate(metric.expression, fixed | current)


def prune_matrix(
    matrix: Matrix, statistics: Statistics, method: Method, mask: Tensor | None = None
) -> MatrixRecord:
    """Score and mask one matrix of the model in place, and run the steps of the method.

    mask: (out, in), True = kept, where it has been chosen already. A matrix that calibration
    never reached is pruned by magnitude without any step: the record's note says so. Raises
    PrunerZeroError naming the matrix.
    """
    chooser = method.chooser
    by_own_score = chooser is not None and method.sweeps_by_own_score
    scorer = None
    if mask is None and not (by_own_score and not statistics.silent()):
        scores = score_matrix(matrix, statistics, method.metric)
        if scores is None:
            mask = keep_mask(matrix.weight.float().abs(), within_matrix(method), matrix.name)
            silent = " and ".join(statistics.silent())
            return _zero(matrix, mask, note=f"calibration left {silent} zero: pruned by magnitude")
        if chooser is None:
            mask = keep_mask(scores, method.pattern, matrix.name)
        elif not by_own_score:
            scorer = sweep_scorer(matrix, statistics, method.metric)
    steps = plan(method.steps, chooser if mask is None else None)
    if mask is not None and not steps:
        return _zero(matrix, mask)
    weight, hessian = matrix.weight.float(), statistics.hessian
    layer = Layer(weight, hessian, method.pattern, mask, scorer, name=matrix.name)
    result = run_steps(layer, steps)
    matrix.weight.copy_(result.weight)
    return _zero(matrix, result.mask, used_damping(hessian, steps), result.note)


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


@dataclass(frozen=True)
class Job:
    """One matrix with all that it takes to prune it; no other matrix has a part in that.

    mask (out, in), True = kept, where it is known already.
    """

    matrix: Matrix
    statistics: Statistics
    method: Method
    mask: Tensor | None = None

    def run(self) -> MatrixRecord:
        """Prune the matrix in place. Raises PrunerZeroError naming it."""
        return prune_matrix(self.matrix, self.statistics, self.method, self.mask)


def check_shapes(matrices: Sequence[Matrix], method: Method) -> None:
    """Raise PrunerZeroError before any work where the pattern does not fit a matrix."""
    for matrix in matrices:
        check_width(matrix.weight.shape[1], method.pattern, matrix.name)
