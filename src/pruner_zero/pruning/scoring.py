"""From the statistics of a matrix to its scores."""

from collections.abc import Mapping

from torch import Tensor

from pruner_zero.calibration import InputStatistic, select
from pruner_zero.errors import PrunerZeroError
from pruner_zero.metric import TERMINALS, Expression, Metric, ScoreError, collected_for, score
from pruner_zero.models import Matrix
from pruner_zero.pruning.statistics import Statistics


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
        raise PrunerZeroError(
            f"{metric} cannot score {matrix.name}: {error}: choose another metric, or exclude "
            "the matrix"
        ) from error
