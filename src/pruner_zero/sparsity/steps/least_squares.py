"""The best weights under a mask: each row's least squares on the columns it keeps."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pruner_zero.errors import PrunerZeroError
from pruner_zero.sparsity.hessian import Hessian
from pruner_zero.sparsity.steps.conjugate_gradients import (
    Preconditioner,
    conjugate_gradients,
    dot,
    preconditioner,
    products_with,
    ratio,
)
from pruner_zero.sparsity.steps.step import Layer, Step, Updated

# The error is then within 0.2 % of that at 0.001, after two thirds of the iterations or fewer
# (benchmarks/decisions.md).
TOLERANCE = 0.01

# Rows solved together hold about ten arrays (rows, in).
_ROWS = 2048

# With products in bfloat16, the residual is computed anew in float32 each time it has fallen to
# this share, beside which bfloat16's rounding of 0.004 is small.
_COARSE = 0.03


@dataclass(frozen=True)
class Solution:
    """The solved `weight` (out, in) float32, 0.0 where pruned, and how it was found.

    residual: the norm of the gradient relative to that of plain masking, the largest of the rows;
    the square of the norm measures how much the error could still fall. converged: whether the
    residual, computed again after the iterations, is below twice the tolerance.
    """

    weight: Tensor
    iterations: int
    residual: float
    converged: bool

    @property
    def note(self) -> str | None:
        """The remark for the user on a solution that did not converge."""
        left = f"{self.iterations} iterations with a residual of {self.residual:.1g}"
        return None if self.converged else f"least squares stopped at {left}"


def exact_update(layer: Layer) -> Updated:
    """The step `exact`: the weights that `solve` finds under the layer's mask."""
    solution = solve(layer)
    return Updated(solution.weight, layer.required_mask, solution.note)


def estimate_update(layer: Layer) -> Updated:
    """Weights near those of `solve`, at a tolerance of 0.03 or after 20 iterations."""
    return Updated(solve(layer, tolerance=0.03, max_iterations=20).weight, layer.required_mask)


def solve(
    layer: Layer,
    *,
    tolerance: float = TOLERANCE,
    max_iterations: int = 200,
) -> Solution:
    """Least squares for the kept weights of every row, by conjugate gradients.

    For a dense row w (in,) and the damped Hessian H (in, in), finds the row w' with zeros where the
    mask (out, in) is False that minimises (w' − w)·H·(w' − w)ᵀ. Weights of inputs that are always
    zero become zero.

    tolerance: a row stops when its residual is at most this share of the residual of plain masking.
    max_iterations: the limit for all rows; `Solution.note` says if rows reached it.
    Rows are solved 2048 at a time. If all rows keep the same columns (or none), one factorisation
    solves them without iterations. Raises PrunerZeroError naming the layer if the result is not
    finite, and what `Hessian` raises.
    Source: ALPS (Meng et al. 2024, 2406.07831) solves all rows at once by conjugate gradients with
    a diagonal preconditioner and 10 iterations. Ours: Nyström's preconditioner (Frangella, Tropp &
    Udell 2021, 2110.02820) cut to the support of each row, and a tolerance. From 4096 inputs on,
    products are in bfloat16 where the device has them and residuals in float32 (iterative
    refinement in two precisions: Carson & Higham 2018, 10.1137/17M1140819).
    """
    hessian, mask = layer.required_hessian, layer.required_mask
    active = hessian.gram.diagonal() != 0
    columns = _shared_columns(mask & active)
    if columns is None and len(mask) > _ROWS:
        parts = [
            solve(
                replace(layer, dense=layer.dense[rows], mask=mask[rows]),
                tolerance=tolerance,
                max_iterations=max_iterations,
            )
            for rows in (slice(first, first + _ROWS) for first in range(0, len(mask), _ROWS))
        ]
        return Solution(
            torch.cat([part.weight for part in parts]),
            max(part.iterations for part in parts),
            max(part.residual for part in parts),
            all(part.converged for part in parts),
        )
    W = layer.dense.detach().float()
    if columns is not None and "inverse" in vars(hessian):
        removed = remove_columns(W, hessian, ~columns)
        if removed is not None:
            solved = removed.masked_fill_(~(mask & active), 0.0)
            return Solution(_finite(solved, layer), 0, 0.0, True)
    H = hessian.damped()
    support = (mask & active).float()
    begin = W * support
    plain = (W * active - begin) @ H
    plain *= support
    if columns is not None:
        L, failed = torch.linalg.cholesky_ex(H[columns][:, columns])
        # Where rounding makes it fail at the edge of what H's own factor allows, iterate.
        if not failed:
            change = torch.zeros_like(W)
            change[:, columns] = torch.cholesky_solve(plain[:, columns].t(), L).t()
            solved = (begin + change).masked_fill_(support == 0, 0.0)
            return Solution(_finite(solved, layer), 0, 0.0, True)
    precondition = preconditioner(hessian, H)(support)
    whole = dot(plain, precondition(plain))
    change, residual, iterations = _descend(
        plain, hessian, H, precondition, tolerance**2 * whole, max_iterations
    )
    left = ratio(dot(residual, precondition(residual)), whole)
    relative = float(left.max().clamp_min(0).sqrt())
    # Twice the decrease of the error; a row that rounding has made worse stays as it was.
    fell = (change * (plain + residual)).sum(1, keepdim=True) >= 0
    result = torch.where(fell, begin + change, begin).masked_fill_(support == 0, 0.0)
    return Solution(_finite(result, layer), iterations, relative, relative <= 2 * tolerance)


def remove_columns(weight: Tensor, hessian: Hessian, removed: Tensor) -> Tensor | None:
    """`weight` (rows, in), least squares on the columns that stay once `removed` (in,) bool go.

    w − w_P·(H⁻¹_PP)⁻¹·H⁻¹_P for the removed columns P: given H⁻¹, this factors |P| columns instead
    of the columns that stay. None where rounding makes it fail.
    Source: optimal brain surgeon for several weights (Hassibi & Stork 1993), as in ZipLM (Kurtić et
    al. 2023, 2302.04089).
    """
    inverse = hessian.inverse[removed]
    L, failed = torch.linalg.cholesky_ex(inverse[:, removed])
    if failed:
        return None
    solved = torch.cholesky_solve(weight[:, removed].t(), L).t()
    active = hessian.gram.diagonal() != 0
    result: Tensor = ((weight - solved @ inverse) * active).masked_fill_(removed, 0.0)
    return result


def _shared_columns(support: Tensor) -> Tensor | None:
    """The columns (in,) bool that all rows keep, but for rows that keep none.

    None where rows keep different ones.
    """
    columns = support.any(0)
    return columns if torch.equal(support, support.any(1)[:, None] & columns) else None


def _finite(weight: Tensor, layer: Layer) -> Tensor:
    if not weight.isfinite().all():
        raise PrunerZeroError(
            f"the updated weights of {layer.name} are not finite: raise --damping, or exclude "
            "the matrix"
        )
    return weight


def _descend(
    first: Tensor,
    hessian: Hessian,
    H: Tensor,
    precondition: Preconditioner,
    goal: Tensor,
    max_iterations: int,
) -> tuple[Tensor, Tensor, int]:
    """The change (out, in) that solves H_SS·change = first, what is left of `first`, iterations.

    With products in bfloat16, what is left is computed in float32 each time it has fallen to
    `_COARSE`, and solved for again until all rows are down to twice the root of `goal` (out, 1).
    """
    product, coarse = products_with(hessian, H)
    change, iterations = torch.zeros_like(first), 0
    residual, left = first, dot(first, precondition(first))
    while True:
        within = goal.maximum(_COARSE**2 * left) if coarse else goal
        step, _, used = conjugate_gradients(
            product, residual, precondition, within, max_iterations - iterations
        )
        change, iterations = change.add_(step), iterations + used
        residual = first - (change @ H) * precondition.support
        if not coarse or not used or iterations == max_iterations:
            return change, residual, iterations
        left = dot(residual, precondition(residual))
        if (left <= 4 * goal).all():
            return change, residual, iterations


EXACT = Step(
    "exact",
    exact_update,
    words="the remaining weights corrected by least squares",
    help="least squares",
    option="update",
    damps=True,
    shrinks=True,
    estimate=estimate_update,
)
