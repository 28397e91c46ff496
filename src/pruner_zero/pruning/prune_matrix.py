"""One matrix of the model from its mask to its pruned weights."""

from torch import Tensor

from pruner_zero.models import Matrix
from pruner_zero.pruning.choice import Choice
from pruner_zero.pruning.method import Method
from pruner_zero.pruning.record import MatrixRecord
from pruner_zero.pruning.statistics import Statistics
from pruner_zero.pruning.structured import Structured
from pruner_zero.sparsity import Layer, plan, run_steps, used_damping


def prune_matrix(
    matrix: Matrix, statistics: Statistics, method: Method, choice: Choice
) -> MatrixRecord:
    """Run the steps of the method on one matrix of the model, in place, and write the zeros.

    A matrix that calibration never reached only gets the zeros of its mask, and so does a matrix
    that only the dense model's tokens reached: the record's note says so. Raises PrunerZeroError
    naming the matrix.
    """
    mask, hessian = choice.masks.get(matrix.name), statistics.hessian
    reached = matrix.name in choice.reached
    # Under a Hessian of zeros, every step would give weights of zero.
    if not reached or (hessian is not None and not hessian.gram.diagonal().any()):
        silent = " and ".join(statistics.silent()) or "its inputs"
        consequence = "no step after the mask" if reached else "pruned by magnitude"
        note = f"calibration left {silent} zero: {consequence}"
        return write_zeros(matrix, choice.masks[matrix.name], note=note)
    chooser = method.chooser if mask is None else None
    steps = plan(method.steps, chooser)
    # A producer of units keeps whole rows: without a target, there is no error in them.
    whole = isinstance(method.pattern, Structured) and matrix.name not in method.pattern.consumers
    if mask is not None and (not steps or (whole and (hessian is None or hessian.target is None))):
        return write_zeros(matrix, mask)
    weight = matrix.weight.float()
    layer = Layer(weight, hessian, method.pattern, mask, name=matrix.name)
    result = run_steps(layer, steps)
    matrix.weight.copy_(result.weight)
    return write_zeros(matrix, result.mask, used_damping(hessian, steps), result.note)


def write_zeros(
    matrix: Matrix, mask: Tensor, damping: float | None = None, note: str | None = None
) -> MatrixRecord:
    """Write exact zeros where `mask` prunes, and count all zeros of the matrix."""
    weight = matrix.weight
    # A weight that was −0.0, or became it in a narrow dtype, counts as pruned: make it 0.0 too.
    zero = ~mask | (weight == 0)
    weight.masked_fill_(zero, 0)
    shape = (weight.shape[0], weight.shape[1])
    return MatrixRecord(matrix.name, matrix.block, shape, int(zero.sum()), damping, note)
