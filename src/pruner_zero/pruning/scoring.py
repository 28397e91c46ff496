"""From the statistics of a matrix to its scores and to its pruned weights."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pruner_zero.errors import PrunerZeroError
from pruner_zero.metric import Call, Metric, ScoreError, evaluate
from pruner_zero.models import Matrix
from pruner_zero.pruning.method import Method
from pruner_zero.pruning.record import MatrixRecord
from pruner_zero.sparsity import (
    BLOCK_COLUMNS,
    Pattern,
    Scorer,
    SparseGPTResult,
    Unstructured,
    check_width,
    exact_update,
    hessian_diagonal,
    keep_mask,
    refine_exact,
    refine_mask,
    retarget,
    sparsegpt,
)

# How far asymmetric updates and swaps aim from a matrix's own outputs towards the dense model's.
# All the way diverges on real models: what pruning has lost is no function of the inputs that are
# left, and what is fitted to it adds up block after block (benchmarks/asymmetry.md).
ASYMMETRY = 0.25


@dataclass(frozen=True)
class Statistics:
    """What calibration knows of one matrix, each None where it was not collected.

    cross (in, in): X_denseᵀ·X beside gram = XᵀX, where updates aim at the dense outputs.
    """

    X: Tensor | None = None
    G: Tensor | None = None
    gram: Tensor | None = None
    cross: Tensor | None = None

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
    try:
        return metric.score(_terminals(matrix, statistics, metric, damping))
    except ScoreError as error:
        if silent:
            return None
        raise PrunerZeroError(f"{metric} cannot score {matrix.name}: {error.reason}") from error


def _terminals(
    matrix: Matrix, statistics: Statistics, metric: Metric, damping: float
) -> dict[str, Tensor]:
    weight = matrix.weight.float()
    terminals = {"W": weight.abs()}
    if "S" in metric.needs:
        terminals["S"] = weight
    if "G" in metric.needs and statistics.G is not None:
        terminals["G"] = statistics.G
    if "X" in metric.needs and statistics.X is not None:
        terminals["X"] = statistics.X
    if "D" in metric.needs and statistics.gram is not None:
        terminals["D"] = hessian_diagonal(statistics.gram, damping, name=matrix.name)
    return terminals


def sweep_scorer(matrix: Matrix, statistics: Statistics, metric: Metric, damping: float) -> Scorer:
    """The metric as the sweep asks for it: of some columns, by the weights as updated so far.

    G, X and D stay what calibration found. A metric whose operators look beyond a column
    sees the whole matrix, which is scored anew for every 128 columns only.
    """
    known = _terminals(matrix, statistics, metric, damping)
    local = all(
        node.operator.reach in ("element", "column")
        for node in metric.expression.walk()
        if isinstance(node, Call)
    )
    whole: dict[int, Tensor] = {}

    def score(weight: Tensor, columns: slice) -> Tensor:
        if local:
            return _evaluate(metric, known, weight, columns)
        block = columns.start // BLOCK_COLUMNS
        if block not in whole:
            whole.clear()
            whole[block] = _evaluate(metric, known, weight, slice(None))
        return whole[block][:, columns]

    return score


def _evaluate(metric: Metric, known: dict[str, Tensor], weight: Tensor, columns: slice) -> Tensor:
    now = {"W": weight[:, columns].abs(), "S": weight[:, columns]}
    fixed = {name: one[:, columns] for name, one in known.items() if name not in now}
    return evaluate(metric.expression, fixed | now)


def prune_matrix(
    matrix: Matrix,
    statistics: Statistics,
    method: Method,
    damping: float,
    mask: Tensor | None = None,
) -> MatrixRecord:
    """Score, mask and, if the method says so, refine and update one matrix of the model in place.

    mask (out, in), True = kept, where it is known already. A matrix that calibration never
    reached is pruned by magnitude without an update: the record's note says so. Raises
    PrunerZeroError naming the matrix.
    """
    choosing = method.chooses_while_updating
    own = choosing and method.sweeps_by_own_score and not statistics.silent()
    if mask is None and not own:
        scores = score_matrix(matrix, statistics, method.metric, damping)
        if scores is None:
            mask = keep_mask(matrix.weight.float().abs(), within_matrix(method), matrix.name)
            silent = " and ".join(statistics.silent())
            return _zero(matrix, mask, note=f"calibration left {silent} zero: pruned by magnitude")
        mask = None if choosing else keep_mask(scores, method.pattern, matrix.name)
    if mask is not None and not method.refine and method.update == "none":
        return _zero(matrix, mask)
    return _improve(matrix, statistics, method, damping, mask)


def _improve(
    matrix: Matrix, statistics: Statistics, method: Method, damping: float, mask: Tensor | None
) -> MatrixRecord:
    """Refine the mask, or have the sweep choose it first where it is None, and update."""
    gram, cross, name = statistics.gram, statistics.cross, matrix.name
    if gram is None:
        raise ValueError("refinement and updates need the Gram matrix")
    if cross is not None:
        cross = torch.lerp(gram, cross, ASYMMETRY)
    weight = matrix.weight.float()
    aim = weight
    if cross is not None and (mask is None or method.update in ("obs", "obs-iter")):
        aim, _ = retarget(weight, gram, cross, damping, name=name)

    def sweep(mask: Tensor | None, scorer: Scorer | None = None) -> SparseGPTResult:
        return sparsegpt(
            aim, gram, method.pattern, mask=mask, scorer=scorer, damping=damping, name=name
        )

    swept = None
    if mask is None:
        by_own_score = method.sweeps_by_own_score
        scorer = None if by_own_score else sweep_scorer(matrix, statistics, method.metric, damping)
        swept = sweep(None, scorer)
        mask = swept.mask
    if method.refine and method.update != "exact":
        aimed_at = cross if method.update == "none" else None
        mask = refine_mask(weight, gram, mask, method.pattern, cross=aimed_at, name=name)
        swept = None
    if method.update == "none":
        return _zero(matrix, mask)
    notes = []
    if method.update == "exact":
        if method.refine:
            mask, solved = refine_exact(
                weight, gram, mask, method.pattern, damping=damping, cross=cross, name=name
            )
        else:
            solved = exact_update(weight, gram, mask, damping=damping, cross=cross, name=name)
        updated, used = solved.weight, solved.damping
        if not solved.converged:
            notes.append(
                f"least squares stopped at {solved.iterations} iterations with a residual of "
                f"{solved.residual:.1g}"
            )
    else:
        swept = swept or sweep(mask)
        updated, used = swept.weight, swept.damping
    matrix.weight.copy_(updated)
    if used != damping:
        notes.insert(0, f"damping raised to {used:g} for the Cholesky factor")
    return _zero(matrix, mask, used, "; ".join(notes) or None)


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
    damping: float
    mask: Tensor | None = None

    def run(self) -> MatrixRecord:
        """Prune the matrix in place. Raises PrunerZeroError naming it."""
        return prune_matrix(self.matrix, self.statistics, self.method, self.damping, self.mask)


def check_shapes(matrices: Sequence[Matrix], method: Method) -> None:
    """Raise PrunerZeroError before any work where the pattern does not fit a matrix."""
    for matrix in matrices:
        check_width(matrix.weight.shape[1], method.pattern, matrix.name)
