"""A better mask for the weights that least squares leaves: swaps, judged by solving anew."""

import torch
from torch import Tensor

from pruner_zero.sparsity.least_squares import LeastSquaresResult, exact_update, prepare
from pruner_zero.sparsity.pattern import Pattern, SemiStructured, check_width
from pruner_zero.sparsity.update import add_damping, inverse_cholesky

# How far solutions go that only compare two masks; the last one goes as far as any.
_TOLERANCE = 0.05

# Rows in work at once list every place of a row as pruned and as revived.
_ROWS = 2048


def refine_exact(
    weight: Tensor,
    gram: Tensor,
    mask: Tensor,
    pattern: Pattern,
    *,
    damping: float = 0.01,
    cross: Tensor | None = None,
    turns: int = 12,
    name: str = "matrix",
) -> tuple[Tensor, LeastSquaresResult]:
    """The mask after swaps that lower each row's error *after* least squares, and that solution.

    `weight`, `mask` (out, in), `gram`, `cross` (in, in) and `damping` are those of `exact_update`.
    With w the solution under the mask so far and r half the negative gradient there, to prune a
    kept weight costs about w_q²·c_q and to revive a pruned one gains about r_p²/c_p. c is the
    curvature of the error along one weight while others make up for it: H_jj where none does,
    1/[H⁻¹]_jj where all do, of which the geometric mean is taken. In a turn each row swaps the
    pairs that seem to gain (N:M: one a group at most) and is solved anew from where it is; one
    whose error did not fall keeps the mask it had and swaps the better half of them in the next
    turn. Ends after `turns`, or where no row has a pair left. Every row and N:M group keeps its
    zeros, and no row ends with a larger error than `exact_update` leaves under `mask`, but for how
    far the solutions go that compare masks: to a twentieth of the first residual.
    Raises what `exact_update` raises, and PrunerZeroError where the pattern does not fit.
    Source: ours; the two estimates are those of optimal brain surgery (Hassibi & Stork 1993).
    """
    if isinstance(pattern, SemiStructured):
        check_width(weight.shape[1], pattern, name)
    known = prepare(gram, damping, name=name)
    H, C = add_damping(gram, known.damping), gram.detach().float()
    W = weight.detach().float()
    # Weights of channels that were never active are worth nothing.
    target = (W * (C.diagonal() != 0)) @ H
    if cross is not None:
        target += W @ (cross.float() - C)
    U, _ = inverse_cholesky(gram, known.damping, name=name)
    curvature = (H.diagonal() / U.square().sum(0)).sqrt()

    def solve(rows: Tensor, mask: Tensor, start: Tensor | None = None) -> Tensor:
        return exact_update(
            W[rows],
            gram,
            mask,
            cross=cross,
            tolerance=_TOLERANCE,
            start=start,
            preparation=known,
            name=name,
        ).weight

    kept, solved = mask.clone(), torch.empty_like(W)
    for first in range(0, len(W), _ROWS):
        rows = torch.arange(first, min(first + _ROWS, len(W)), device=W.device)
        solved[rows] = solve(rows, kept[rows])
        error = _errors(solved[rows], H, target[rows])
        most = torch.full_like(rows, W.shape[1])
        for _ in range(turns):
            gradient = target[rows] - solved[rows] @ H
            trial = _swap(solved[rows], gradient, kept[rows], curvature, most, pattern)
            count = (trial & ~kept[rows]).sum(1)
            moved = count > 0
            rows, trial, count, error = rows[moved], trial[moved], count[moved], error[moved]
            if not len(rows):
                break
            anew = solve(rows, trial, solved[rows])
            reached = _errors(anew, H, target[rows])
            lower = reached < error
            kept[rows[lower]], solved[rows[lower]] = trial[lower], anew[lower]
            error = torch.where(lower, reached, error)
            most = torch.where(lower, W.shape[1], count // 2)
    return kept, exact_update(
        weight, gram, kept, cross=cross, start=solved, preparation=known, name=name
    )


def _swap(
    weight: Tensor,
    gradient: Tensor,
    mask: Tensor,
    curvature: Tensor,
    most: Tensor,
    pattern: Pattern,
) -> Tensor:
    """The mask (rows, in) after the swaps of one turn, of every row `most` (rows) at most."""
    cost = (weight.square() * curvature).masked_fill(~mask, torch.inf)
    gain = (gradient.square() / curvature).masked_fill(mask, -torch.inf)
    if isinstance(pattern, SemiStructured):
        groups = (len(mask), -1, pattern.m)
        least, pruned = cost.view(groups).min(2)
        highest, revived = gain.view(groups).max(2)
        first = pattern.m * torch.arange(least.shape[1], device=mask.device)
        effect, order = (highest - least).sort(1, descending=True)
        pruned, revived = (one.add(first).gather(1, order) for one in (pruned, revived))
    else:
        least, pruned = cost.sort(1)
        highest, revived = gain.sort(1, descending=True)
        effect = highest - least
    place = torch.arange(effect.shape[1], device=mask.device)
    chosen = (effect > 0) & (place < most[:, None])
    swapped = mask.scatter(1, pruned, mask.gather(1, pruned) & ~chosen)
    return swapped.scatter(1, revived, swapped.gather(1, revived) | chosen)


def _errors(weight: Tensor, H: Tensor, target: Tensor) -> Tensor:
    """Of every row, besides what no weights change: (out)."""
    return (weight * (weight @ H - 2 * target)).sum(1)
