"""From the statistics of a matrix to its scores."""

from collections.abc import Mapping

from torch import Tensor

from pruner_zero.calibration import InputStatistic, select
from pruner_zero.errors import PrunerZeroError
from pruner_zero.metric import (
    TERMINALS,
    Call,
    Expression,
    Metric,
    ScoreError,
    collected_for,
    evaluate,
    score,
)
from pruner_zero.models import Matrix
from pruner_zero.pruning.statistics import Statistics
from pruner_zero.sparsity import BLOCK_COLUMNS, Scorer


def reached_score(expression: Expression, terminals: Mapping[str, Tensor]) -> Tensor | None:
    """The scores (out, in) of one matrix, fp32; None where calibration never reached the matrix.

    Such a matrix, as an expert that no token chose, has an all-zero statistic of its input, or an
    all-zero statistic of its gradients from which the expression gives no scores. Raises ScoreError
    where the metric itself fails.
    """
    silent = [
        name
        for name in expression.terminals
        if TERMINALS[name].collected is not None and not terminals[name].any()
    ]
    if select(InputStatistic, collected_for(silent)):
        return None
    try:
        return score(expression, terminals)
    except ScoreError:
        if silent:
            return None
        raise


def score_matrix(matrix: Matrix, statistics: Statistics, metric: Metric) -> Tensor | None:
    """The scores of `matrix` by `metric`, as `reached_score` gives them.

    Raises PrunerZeroError naming the matrix where the metric itself fails.
    """
    if statistics.hessian is not None and not statistics.hessian.gram.any():
        return None
    try:
        terminals = statistics.terminals({"W", *metric.needs}, matrix.weight.float())
        return reached_score(metric.expression, terminals)
    except ScoreError as error:
        raise PrunerZeroError(f"{metric} cannot score {matrix.name}: {error}") from error


def sweep_scorer(matrix: Matrix, statistics: Statistics, metric: Metric) -> Scorer:
    """The metric as the sweep calls it: on some columns, with the weights as updated so far.

    What calibration collected stays as it is. A metric whose operators look beyond a column
    sees the whole matrix, which is scored anew for every 128 columns only.
    """
    collected = statistics.terminals({"W", *metric.needs}, matrix.weight.float())
    local = all(
        node.operator.reach in ("element", "column")
        for node in metric.expression.walk()
        if isinstance(node, Call)
    )
    whole: dict[int, Tensor] = {}

    def score_columns(weight: Tensor, columns: slice) -> Tensor:
        if local:
            return _evaluate(metric, collected, weight, columns)
        block = columns.start // BLOCK_COLUMNS
        if block not in whole:
            whole.clear()
            whole[block] = _evaluate(metric, collected, weight, slice(None))
        return whole[block][:, columns]

    return score_columns


def _evaluate(
    metric: Metric, collected: dict[str, Tensor], weight: Tensor, columns: slice
) -> Tensor:
    current = {"W": weight[:, columns].abs(), "S": weight[:, columns]}
    fixed = {
        name: value[:, columns] if TERMINALS[name].shape.value[1] else value
        for name, value in collected.items()
        if name not in current
    }
    return evaluate(metric.expression, fixed | current)
