"""Improving a mask under least squares: swaps, judged by solving again."""

from dataclasses import replace

import torch
from torch import Tensor

from pruner_zero.sparsity.steps.least_squares import solve
from pruner_zero.sparsity.steps.step import Layer, Step, Updated

# Tolerance of the solutions that only compare two masks; the last one has `solve`'s own.
_TOLERANCE = 0.05

# Rows processed together list every place of a row as pruned and as revived.
_ROWS = 2048

_TURNS = 12


def refine_exact(layer: Layer) -> Updated:
    """The mask after swaps that lower each row's error *after* least squares, and that solution.

    With w the solution under the mask so far and r half the negative gradient there, to prune a
    kept weight costs about w_q²·c_q and to revive a pruned one gains about r_p²/c_p. c is the
    curvature of the error along one weight: the geometric mean of H_jj, where no other weight
    compensates, and of 1/[H⁻¹]_jj, where all do. In a turn each row swaps the pairs with an
    estimated gain (N:M: at most one in a group) and is solved again from its last solution; a row
    whose error did not fall keeps its old mask and swaps the better half of the pairs in the next
    turn. Ends after 12 turns, or where no row has a pair left. Every row and N:M group keeps its
    zeros. Masks are compared by solutions with a tolerance of 0.05, the last solution has that of
    `solve`: up to that difference, no row ends with a larger error than `solve` leaves under the
    given mask. Raises what `solve` raises, and PrunerZeroError where the pattern does not fit.
    Source: the two estimates are those of optimal brain surgery (Hassibi & Stork 1993), a swap as a
    step of local search under least squares is that of Hazimeh & Mazumder 2020 (1803.01454); their
    combination over all rows at once is ours.
    """
    pattern, hessian = layer.pattern, layer.required_hessian
    W = layer.dense.detach().float()
    group = pattern.swap_columns
    pattern.check(layer.name, (W.shape[0], W.shape[1]))
    # Before `damped`, which then need not factor the gram once more for its damping.
    inverse_diagonal = hessian.inverse_diagonal
    H = hessian.damped()
    # Weights of channels that were never active have no effect.
    target = (W * (hessian.gram.diagonal() != 0)) @ H
    drift = hessian.drift(W)
    if drift is not None:
        target += drift
    curvature = (H.diagonal() / inverse_diagonal).sqrt()

    def solve_rows(rows: Tensor, mask: Tensor, start: Tensor | None = None) -> Tensor:
        part = replace(layer, dense=W[rows], mask=mask)
        return solve(part, tolerance=_TOLERANCE, start=start).weight

    kept, solved = layer.required_mask.clone(), torch.empty_like(W)
    for first in range(0, len(W), _ROWS):
        rows = torch.arange(first, min(first + _ROWS, len(W)), device=W.device)
        solved[rows] = solve_rows(rows, kept[rows])
        error = _errors(solved[rows], H, target[rows])
        most = torch.full_like(rows, W.shape[1])
        for _ in range(_TURNS):
            gradient = target[rows] - solved[rows] @ H
            trial = _swap(solved[rows], gradient, kept[rows], curvature, most, group)
            count = (trial & ~kept[rows]).sum(1)
            moved = count > 0
            rows, trial, count, error = rows[moved], trial[moved], count[moved], error[moved]
            if not len(rows):
                break
            anew = solve_rows(rows, trial, solved[rows])
            reached = _errors(anew, H, target[rows])
            lower = reached < error
            kept[rows[lower]], solved[rows[lower]] = trial[lower], anew[lower]
            error = torch.where(lower, reached, error)
            most = torch.where(lower, W.shape[1], count // 2)
    solution = solve(replace(layer, mask=kept), start=solved)
    return Updated(solution.weight, kept, solution.note)


def _swap(
    weight: Tensor,
    gradient: Tensor,
    mask: Tensor,
    curvature: Tensor,
    most: Tensor,
    group: int | None,
) -> Tensor:
    """The mask (rows, in) after the swaps of one turn, at most `most` (rows,) of each row."""
    cost = (weight.square() * curvature).masked_fill(~mask, torch.inf)
    gain = (gradient.square() / curvature).masked_fill(mask, -torch.inf)
    if group is not None:
        groups = (len(mask), -1, group)
        least, pruned = cost.view(groups).min(2)
        highest, revived = gain.view(groups).max(2)
        first = group * torch.arange(least.shape[1], device=mask.device)
        effect, order = (highest - least).sort(1, descending=True)
        pruned, revived = (place.add(first).gather(1, order) for place in (pruned, revived))
    else:
        least, pruned = cost.sort(1)
        highest, revived = gain.sort(1, descending=True)
        effect = highest - least
    place = torch.arange(effect.shape[1], device=mask.device)
    chosen = (effect > 0) & (place < most[:, None])
    swapped = mask.scatter(1, pruned, mask.gather(1, pruned) & ~chosen)
    return swapped.scatter(1, revived, swapped.gather(1, revived) | chosen)


def _errors(weight: Tensor, H: Tensor, target: Tensor) -> Tensor:
    """The error of every row (out,), without the part that no weights change."""
    return (weight * (weight @ H - 2 * target)).sum(1)


REFINE_EXACT = Step(
    "refine+exact",
    refine_exact,
    words="swaps in the mask and least squares on the remaining weights taken in turn",
    help="swaps judged by the error that least squares leaves",
    aims=True,
    damps=True,
)
