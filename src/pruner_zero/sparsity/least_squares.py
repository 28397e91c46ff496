"""The best weights under a mask: each row's least squares on the columns it keeps."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pruner_zero.errors import PrunerZeroError
from pruner_zero.sparsity.update import add_damping, check_operands, held_damping

# The few loud directions of the inputs decide how long conjugate gradients take; found by
# measurement, 16 take a third more iterations and 64 save fewer than they cost.
_RANK = 32

_POWER_STEPS = 2

# How far the preconditioner's quiet part may lie below its loud one, for float32's sake.
_RANGE = 1e-5


@dataclass(frozen=True)
class LeastSquaresResult:
    """The updated `weight` (out, in) float32, 0.0 where pruned, and how it was found.

    damping: the one used, raised as in `inverse_cholesky`. residual: what is left of the
    gradient where that of plain masking is 1, the largest of the rows, in a norm whose square
    measures by how much the error could still fall. converged: whether that came under twice
    the tolerance, measured anew after the iterations.
    """

    weight: Tensor
    damping: float
    iterations: int
    residual: float
    converged: bool


@dataclass(frozen=True)
class Preparation:
    """What solving needs to know of a gram, whatever the weights and the mask.

    damping: the one that makes it positive definite; factor (in, rank): Nyström's, of its
    damped form.
    """

    damping: float
    factor: Tensor


def prepare(gram: Tensor, damping: float = 0.01, *, name: str = "matrix") -> Preparation:
    """The part of `exact_update` that many updates with the same `gram` (in, in) can share.

    Raises what `inverse_cholesky` raises. Source: ours.
    """
    damping = held_damping(gram, damping, name=name)
    return Preparation(damping, _nystrom(add_damping(gram, damping), min(_RANK, len(gram) // 4)))


def exact_update(
    weight: Tensor,
    gram: Tensor,
    mask: Tensor,
    *,
    damping: float = 0.01,
    cross: Tensor | None = None,
    tolerance: float = 1e-3,
    max_iterations: int = 200,
    start: Tensor | None = None,
    preparation: Preparation | None = None,
    name: str = "matrix",
) -> LeastSquaresResult:
    """Per row the w' that minimises (w' − w)·H·(w' − w)ᵀ with zeros where `mask` is False.

    `weight` and `mask` (out, in), True is kept; `gram` (in, in) = XᵀX or a positive multiple,
    H its damped form as in `inverse_cholesky`. With `cross` (in, in) = X_denseᵀ·X, the same
    multiple, the outputs on the inputs of the dense model are the target:
    |w·X_denseᵀ − w'·Xᵀ|² + λ·|w' − w|² is minimised, λ the damping in absolute terms, so that
    H_SS·w'_S = (w·(cross + λI))_S on the kept columns S. Weights of channels that were never
    active become 0. Iterates until each row's residual is at most `tolerance` of that of plain
    masking, or `max_iterations`, which the result tells. start (out, in): weights to begin with, in
    place of the masked ones. No row is left worse than it begins.
    preparation: of this `gram`, where it is known; it brings its damping.
    Raises PrunerZeroError naming `name` where anything is not finite, and when no damping up
    to 1 makes the gram positive definite.
    Source: the normal equations; preconditioned conjugate gradients (Hestenes & Stiefel 1952)
    on all rows at once with a Nyström preconditioner (Frangella, Tropp & Udell 2021) cut to
    each row's support, ours. One iteration is one product (out, in) × (in, in).
    """
    check_operands(weight, gram, name, mask=mask, cross=cross)
    known = preparation or prepare(gram, damping, name=name)
    damping = known.damping
    H = add_damping(gram, damping)
    W = weight.detach().float()
    alive = gram.diagonal() != 0
    support = (mask & alive).float()
    begin = W * support
    plain = (W * alive - begin) @ H
    if cross is not None:
        plain += W @ (cross.float() - gram.float())
    plain *= support
    floor = damping * gram.diagonal().float().mean()
    precondition = _preconditioner(H, known.factor, support, floor)
    whole = _dot(plain, precondition(plain))
    first = plain
    if start is not None:
        masked, begin = begin, start.detach().float() * support
        first = plain - ((begin - masked) @ H) * support

    step, iterations = _conjugate_gradients(
        H, first, support, precondition, tolerance**2 * whole, max_iterations
    )
    residual = first - (step @ H) * support
    # Twice what the error fell by; a row that rounding has made worse goes back to its start.
    fell = (step * (first + residual)).sum(1, keepdim=True) >= 0
    result = torch.where(fell, begin + step, begin).masked_fill_(support == 0, 0.0)
    left = _ratio(_dot(residual, precondition(residual)), whole)
    relative = float(left.max().clamp_min(0).sqrt())
    if not result.isfinite().all():
        raise PrunerZeroError(
            f"the updated weights of {name} are not finite: raise --damping, or exclude the matrix"
        )
    return LeastSquaresResult(result, damping, iterations, relative, relative <= 2 * tolerance)


def _conjugate_gradients(
    H: Tensor,
    residual: Tensor,
    support: Tensor,
    precondition: Callable[[Tensor], Tensor],
    goal: Tensor,
    max_iterations: int,
) -> tuple[Tensor, int]:
    """Solve H_SS·step = residual for every row, until the norms of all are down to `goal`.

    `residual` (out, in) and all that follows from it are zero outside `support`; goal (out, 1).
    """
    step = torch.zeros_like(residual)
    residual = residual.clone()
    direction = z = precondition(residual)
    now = _dot(residual, z)
    for iteration in range(max_iterations):
        if (now <= goal).all():
            return step, iteration
        image = (direction @ H).mul_(support)
        length = _ratio(now, _dot(direction, image))
        step.addcmul_(length, direction)
        residual.addcmul_(length, image, value=-1)
        z = precondition(residual)
        before, now = now, _dot(residual, z)
        direction = z + _ratio(now, before) * direction
    return step, max_iterations


def _dot(one: Tensor, other: Tensor) -> Tensor:
    """Of every row, (out, 1)."""
    return (one * other).sum(1, keepdim=True)


def _ratio(one: Tensor, other: Tensor) -> Tensor:
    """one / other, 0 where a finished row leaves nothing to divide by."""
    return torch.where(other > 0, one / other, 0.0)


def _preconditioner(
    H: Tensor, F: Tensor, support: Tensor, floor: Tensor
) -> Callable[[Tensor], Tensor]:
    """An approximate inverse of every row's H_SS, from D + F·Fᵀ ≈ H.

    F (in, rank) is Nyström's factor, D the diagonal of what it leaves, at least `floor`; each
    row's support cuts both, and Woodbury's identity inverts the sum.
    """
    rank = F.shape[1]
    squares = (F * F).sum(1)
    floor = floor.maximum(_RANGE * squares.sum())
    inverse = (H.diagonal() - squares).clamp_min(floor).reciprocal()
    scaled = F * inverse[:, None]
    products = (F[:, :, None] * scaled[:, None, :]).view(len(H), rank * rank)
    inner = (support @ products).view(len(support), rank, rank)
    inner.diagonal(dim1=1, dim2=2).add_(1)
    L = torch.linalg.cholesky(inner)

    def apply(residual: Tensor) -> Tensor:
        loud = torch.cholesky_solve((residual @ scaled)[:, :, None], L)[:, :, 0]
        return (residual * inverse).sub_((loud @ scaled.t()).mul_(support))

    return apply


def _nystrom(H: Tensor, rank: int) -> Tensor:
    """F (in, rank), F·Fᵀ close to H in its largest directions and, but for rounding, below it."""
    generator = torch.Generator().manual_seed(0)
    if not rank:
        return H[:, :0]
    Q = torch.randn(len(H), rank, generator=generator).to(H)
    for _ in range(_POWER_STEPS):
        Q = torch.linalg.qr(H @ Q)[0]
    image = H @ Q
    inner = Q.t() @ image
    values, vectors = torch.linalg.eigh((inner + inner.t()) / 2)
    # Directions that float32 cannot tell from the loudest one's rounding are left out.
    loud = values > rank * torch.finfo(H.dtype).eps * values.max()
    factor: Tensor = image @ (vectors * torch.where(loud, values, torch.inf).rsqrt())
    return factor
