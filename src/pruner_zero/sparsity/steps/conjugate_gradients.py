"""Conjugate gradients for the least squares of many rows, each on its own columns."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pruner_zero.devices import has_fast_bfloat16
from pruner_zero.sparsity.hessian import Hessian

# How small the preconditioner's diagonal may be beside its low-rank part, for float32's sake.
_RANGE = 1e-5

# To leave the solved rows out of the products takes a copy of the others, which pays from this
# share of them on.
_UNSOLVED = 0.8

# From this number of inputs on, products are computed in bfloat16 where that is native. Narrower
# matrices gain little (benchmarks/decisions.md) and have the same masks on every machine.
_WIDE = 4096


@dataclass(frozen=True, eq=False)
class Preconditioner:
    """An approximate inverse of every row's H_SS, S its `support`.

    inverse: (in,), the reciprocal diagonal. scaled: (in, rank), the low-rank factor times it.
    support: (rows, in). inner: (rows, rank, rank), the Cholesky factors of Woodbury's identity.
    """

    inverse: Tensor
    scaled: Tensor
    support: Tensor
    inner: Tensor

    def __call__(self, gradient: Tensor) -> Tensor:
        """The approximate inverse times what is inside the support of `gradient` (rows, in)."""
        residual = gradient * self.support
        low_rank = torch.cholesky_solve((residual @ self.scaled)[:, :, None], self.inner)[:, :, 0]
        return (residual * self.inverse).sub_((low_rank @ self.scaled.t()).mul_(self.support))

    def of(self, rows: Tensor) -> "Preconditioner":
        """The preconditioner of these rows alone."""
        return replace(self, support=self.support[rows], inner=self.inner[rows])


def preconditioner(hessian: Hessian, H: Tensor) -> Callable[[Tensor], Preconditioner]:
    """From a support (rows, in) to an approximate inverse of every row's H_SS.

    From D + F·Fᵀ ≈ H: F (in, rank) is Nyström's factor, D the diagonal of what it leaves, at least
    the damping; each row's support cuts both, and Woodbury's identity inverts the sum.
    """
    F = hessian.nystrom
    rank = F.shape[1]
    squares = (F * F).sum(1)
    floor = hessian.used_damping * hessian.gram.diagonal().mean()
    floor = floor.maximum(_RANGE * squares.sum())
    inverse = (H.diagonal() - squares).clamp_min(floor).reciprocal()
    scaled = F * inverse[:, None]
    products = (F[:, :, None] * scaled[:, None, :]).view(len(H), rank * rank)

    def cut(support: Tensor) -> Preconditioner:
        inner = (support @ products).view(len(support), rank, rank)
        inner.diagonal(dim1=1, dim2=2).add_(1)
        return Preconditioner(inverse, scaled, support, torch.linalg.cholesky(inner))

    return cut


def products_with(hessian: Hessian, H: Tensor) -> tuple[Callable[[Tensor], Tensor], bool]:
    """x·H for x (rows, in), and whether it is computed in bfloat16.

    Then this is what Nyström's factor leaves of H: the dominant directions stay in float32, since
    rounding them could make H indefinite.
    """
    if len(H) < _WIDE or not has_fast_bfloat16(H.device):
        return lambda x: x @ H, False
    F = hessian.nystrom
    rest = (H - F @ F.t()).bfloat16()

    def apply(x: Tensor) -> Tensor:
        return torch.addmm((x.bfloat16() @ rest).float(), x @ F, F.t())

    return apply, True


def conjugate_gradients(
    product: Callable[[Tensor], Tensor],
    gradient: Tensor,
    precondition: Preconditioner,
    goal: Tensor,
    max_iterations: int,
) -> tuple[Tensor, Tensor, int]:
    """Solve H_SS·change = gradient_S for every row, until the norms of all are down to `goal`.

    S is the support of `precondition`. gradient: (out, in), of which only the columns in S decide
    the change; goal: (out, 1). Returns the change, `gradient` − change·H in all columns, and the
    iterations. Solved rows leave the products as soon as `_UNSOLVED` or less of the rows is left.
    """
    solved, after = torch.empty_like(gradient), torch.empty_like(gradient)
    rows = torch.arange(len(gradient), device=gradient.device)
    change, gradient = torch.zeros_like(gradient), gradient.clone()
    direction = z = precondition(gradient)
    now = dot(gradient, z)
    iteration = 0
    while True:
        unsolved = (now > goal).flatten()
        if iteration == max_iterations:
            unsolved.zero_()
        count = int(unsolved.sum())
        if count <= _UNSOLVED * len(rows):
            solved[rows], after[rows] = change, gradient
            if not count:
                return solved, after, iteration
            precondition = precondition.of(unsolved)
            rows, change, gradient, direction, now, goal = (
                part[unsolved] for part in (rows, change, gradient, direction, now, goal)
            )
        image = product(direction)
        length = ratio(now, dot(direction, image))
        change.addcmul_(length, direction)
        gradient.addcmul_(length, image, value=-1)
        z = precondition(gradient)
        before, now = now, dot(gradient, z)
        direction = z + ratio(now, before) * direction
        iteration += 1


def dot(left: Tensor, right: Tensor) -> Tensor:
    """The inner products of the rows, (out, 1)."""
    return (left * right).sum(1, keepdim=True)


def ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """numerator / denominator, 0 where a finished row leaves nothing to divide by."""
    return torch.where(denominator > 0, numerator / denominator, 0.0)
