"""One matrix of the model from its mask to its pruned weights, and its record."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from torch import Tensor

from pruner_zero.metric.metric import SPARSEGPT_SCORE, Metric
from pruner_zero.models.matrices import Matrix, local_name_of
from pruner_zero.pruning.masks import Mask, Statistics, score_matrix
from pruner_zero.pruning.recipe import Recipe, Scored
from pruner_zero.sparsity.selection import Unstructured
from pruner_zero.sparsity.sweep import OBS
from pruner_zero.sparsity.update import Layer
from pruner_zero.table import Tabular
from pruner_zero.training.reconstruction import OpenMask

# The least size of a weight that its score is divided by, as a share of the root mean square.
_LEAST_SIZE = 1e-6


@dataclass(frozen=True)
class MatrixRecord:
    """One pruned matrix: how many of its weights are zero, and how it was updated.

    damping: the share of the mean diagonal added to the Hessian, where an update was made.
    shrinkage: the share of each diagonal element added to it, where the update shrinks it.
    note: a remark for the user, such as a fallback.
    """

    name: str
    block: int
    shape: tuple[int, int]
    zeros: int
    damping: float | None = None
    note: str | None = None
    shrinkage: float | None = None

    @property
    def local_name(self) -> str:
        """The name inside the block, the same for all experts of a mixture."""
        return local_name_of(self.name, self.block)

    @property
    def sparsity(self) -> float:
        """The share of weights that are zero."""
        return self.zeros / (self.shape[0] * self.shape[1])

    def to_json(self) -> dict[str, Any]:
        """The sparsity and all fields as JSON values."""
        return {**asdict(self), "shape": list(self.shape), "sparsity": round(self.sparsity, 6)}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "MatrixRecord":
        """Read back what `to_json` wrote."""
        kept = {field.name: value[field.name] for field in fields(cls)}
        return cls(**{**kept, "shape": tuple(kept["shape"])})


def prune_matrix(
    matrix: Matrix, statistics: Statistics, recipe: Recipe, mask: Mask
) -> MatrixRecord:
    """Write the zeros of one matrix of the model, in place, and update its other weights.

    A matrix that calibration never reached only gets the zeros of its mask, and so does a matrix
    that only the dense model's tokens reached: the record's note says so. Raises PrunerZeroError
    naming the matrix.
    """
    kept, hessian = mask.kept, statistics.hessian
    # Under a Hessian of zeros, an update would give weights of zero.
    if not mask.reached or (hessian is not None and not hessian.gram.diagonal().any()):
        silent = " and ".join(statistics.silent()) or "its inputs"
        consequence = "only its mask is applied" if mask.reached else "pruned by magnitude"
        note = f"zero on the calibration text: {silent}; {consequence}"
        if matrix.expert is None and {"X", "XᵀX"} & set(statistics.silent()):
            # As Mamba's dt_proj, whose weight the model multiplies itself.
            note = f"its model does not call this layer, so its inputs are not known: {consequence}"
        assert kept is not None
        return write_zeros(matrix, kept, note=note)
    pattern, update = recipe.pattern, recipe.update
    if kept is not None and (update is None or pattern is None or _is_exact(kept)):
        return write_zeros(matrix, kept)
    assert pattern is not None
    assert update is not None
    assert hessian is not None
    layer = Layer(matrix.weight.float(), hessian, pattern, kept, name=matrix.name)
    result = update.run(layer)
    matrix.weight.copy_(result.weight)
    damping = hessian.used_damping
    raised = f"damping raised to {damping:g} for the Cholesky factor"
    remark = None if damping == hessian.damping else raised
    shrinkage = hessian.shrinkage if update.shrinks else None
    return replace(write_zeros(matrix, result.mask, remark), damping=damping, shrinkage=shrinkage)


def sweeps(recipe: Recipe) -> bool:
    """Whether SparseGPT's sweep chooses masks as it goes, by its own score.

    Where the pattern cannot choose some columns at a time, scores alone choose them.
    """
    pattern, metric = recipe.pattern, recipe.metric
    if recipe.update is not OBS or metric is None or not pattern or pattern.sweep_columns is None:
        return False
    return metric.expression == Metric.of(SPARSEGPT_SCORE).expression


def open_mask(
    matrix: Matrix, statistics: Statistics, scored: Scored, mask: Mask
) -> OpenMask | None:
    """The `mask` of a dense `matrix` as one that follows its weights while they are trained.

    The score of a weight is taken to grow with its size alone. As many weights as in `mask` stay,
    where matrices compete. None where the mask has to stay as it is: where a sweep chooses it,
    where calibration never reached the matrix or nothing of it stays, where scores are below zero.
    """
    name, pattern, kept = matrix.name, scored.pattern, mask.kept
    if kept is None or not kept.any() or not mask.reached or pattern.reach == "block":
        return None
    scores = score_matrix(matrix, statistics, scored.metric) if matrix.weight.any() else None
    if scores is None or bool((scores < 0).any()):
        return None
    if pattern.reach == "model":
        # Half a weight more, so that rounding down gives their number.
        zeros = kept.numel() - int(kept.sum()) + 0.5
        pattern = Unstructured(zeros / kept.numel(), "matrix")
    size = matrix.weight.float().abs()
    by_size = scores.div_(size.clamp_min(_LEAST_SIZE * float(size.square().mean().sqrt())))

    def choose(weights: Tensor) -> Tensor:
        return pattern.choose({name: weights.abs() * by_size})[name]

    return OpenMask(matrix.weight.clone(), choose)


def _is_exact(kept: Tensor) -> bool:
    """Whether rows are kept or pruned as a whole: kept ones have no error to compensate."""
    return bool((kept == kept[:, :1]).all())


def write_zeros(matrix: Matrix, kept: Tensor, note: str | None = None) -> MatrixRecord:
    """Write exact zeros where `kept` is False, and count all zeros of the matrix."""
    weight = matrix.weight
    # A weight that was −0.0, or became it in a narrow dtype, counts as pruned: make it 0.0 too.
    zero = ~kept | (weight == 0)
    weight.masked_fill_(zero, 0)
    shape = (weight.shape[0], weight.shape[1])
    return MatrixRecord(matrix.name, matrix.block, shape, int(zero.sum()), note=note)


def recounted(record: MatrixRecord, matrix: Matrix) -> MatrixRecord:
    """The record with the zeros that its `matrix` has after it was trained."""
    return replace(record, zeros=int((matrix.weight == 0).sum()))


def total_sparsity(records: Sequence[MatrixRecord]) -> float:
    """The share of zeros over all pruned matrices together."""
    weights = sum(record.shape[0] * record.shape[1] for record in records)
    return sum(record.zeros for record in records) / weights


class PrunedMatrices(Tabular):
    """The base of pruning results: a row for each matrix, and the share of zeros."""

    records: Sequence[MatrixRecord]

    @property
    def sparsity(self) -> float:
        """The share of zeros over all pruned matrices."""
        return total_sparsity(self.records)

    def share(self) -> str:
        """How much of the matrices is zero, as a sentence without its stop."""
        return f"{self.sparsity:.2%} of the weights of {len(self.records)} matrices are zero"

    def to_rows(self) -> list[dict[str, Any]]:
        """One row for each matrix."""
        return [record.to_json() for record in self.records]
