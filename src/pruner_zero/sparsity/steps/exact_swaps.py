"""Improving a mask under least squares: swaps, judged by solving again."""

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from pruner_zero.sparsity.steps.conjugate_gradients import (
    conjugate_gradients,
    dot,
    preconditioner,
    products_with,
)
from pruner_zero.sparsity.steps.least_squares import solve
from pruner_zero.sparsity.steps.step import Layer, Step, Updated

# The tolerance of the solutions that only compare two masks.
_TOLERANCE = 0.02

# Rows processed together list every place of a row as pruned and as revived.
_ROWS = 2048

# A turn swaps at most 1/`_PAIRS` of a row's weights, or `_LEAST_PAIRS` pairs where that is more:
# finding the best pairs is faster than sorting all, and rows under a good mask have no more.
_PAIRS, _LEAST_PAIRS = 16, 64

# The most turns, and the most iterations of a solution that compares masks.
_TURNS, _ITERATIONS = 12, 200


def refine_exact(layer: Layer) -> Updated:
    """The mask after swaps that lower each row's error *after* least squares, and that solution.

    Let w be the solution under the present mask and r half the negative gradient at w. Pruning a
    kept weight q raises the error by about w_q²·c_q, and reviving a pruned weight p lowers it by
    about r_p²/c_p. The curvature c_j is the geometric mean of H_jj (no other weight compensates)
    and 1/[H⁻¹]_jj (all others do).
    A turn swaps the pairs of each row with an estimated gain: in N:M at most one a group, else at
    most a sixteenth of the row's weights, or 64 if that is more. The row is then solved again from
    its last solution. If its error did not fall, it keeps its old mask, and the next turn tries the
    better half of the pairs. Stops after 12 turns, or when no row has a pair left.
    Every row and N:M group keeps its number of zeros. The error of a row is at most that of `solve`
    under the given mask, within the tolerance of the solutions (0.02 during the turns).
    Raises what `solve` raises, and PrunerZeroError if the pattern does not fit.
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
    active = hessian.gram.diagonal() != 0
    curvature = (H.diagonal() / inverse_diagonal).sqrt()
    product, precondition = products_with(hessian, H)[0], preconditioner(hessian, H)

    def solve_rows(
        begin: Tensor, gradient: Tensor, mask: Tensor, goal: Tensor | None = None
    ) -> _Solved:
        """The solution under `mask` (rows, in), from the weights `begin`, zero outside it.

        gradient: half the negative one at `begin`. Without a `goal`, it is `_TOLERANCE` of that.
        """
        inverse = precondition((mask & active).float())
        if goal is None:
            goal = _TOLERANCE**2 * dot(gradient, inverse(gradient))
        change, gradient, _ = conjugate_gradients(product, gradient, inverse, goal, _ITERATIONS)
        return _Solved(begin + change, gradient, goal)

    kept, solved = layer.required_mask.clone(), torch.empty_like(W)
    for first in range(0, len(W), _ROWS):
        rows = torch.arange(first, min(first + _ROWS, len(W)), device=W.device)
        plain = W[rows] * (kept[rows] & active)
        gradient = (W[rows] * active - plain) @ H
        best = solve_rows(plain, gradient, kept[rows])
        solved[rows] = best.weight
        most = torch.full_like(rows, W.shape[1])
        for _ in range(_TURNS):
            trial = _swap(best.weight, best.gradient, kept[rows], curvature, most, group)
            count = (trial & ~kept[rows]).sum(1)
            moved = count > 0
            rows, trial, count = rows[moved], trial[moved], count[moved]
            best = _Solved(*(part[moved] for part in best))
            if not len(rows):
                break
            begin = best.weight * trial
            gradient = best.gradient + product(best.weight - begin)
            reached = solve_rows(begin, gradient, trial, best.goal)
            step, slopes = reached.weight - best.weight, reached.gradient + best.gradient
            # By how much the error of each row has fallen.
            lower = (step * slopes).sum(1) > 0
            kept[rows[lower]], solved[rows[lower]] = trial[lower], reached.weight[lower]
            pairs = zip(reached, best, strict=True)
            best = _Solved(*(torch.where(lower[:, None], new, old) for new, old in pairs))
            most = torch.where(lower, W.shape[1], count // 2)
    solution = solve(replace(layer, mask=kept), start=solved)
    return Updated(solution.weight, kept, solution.note)


class _Solved(NamedTuple):
    """Weights of rows under their masks, near the solution.

    gradient: half the negative gradient (rows, in). goal: (rows, 1), the squared norm of the
    gradient that ends a solution.
    """

    weight: Tensor
    gradient: Tensor
    goal: Tensor


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
        pairs = min(cost.shape[1], max(_LEAST_PAIRS, cost.shape[1] // _PAIRS))
        least, pruned = cost.topk(pairs, largest=False)
        highest, revived = gain.topk(pairs)
        effect = highest - least
    place = torch.arange(effect.shape[1], device=mask.device)
    chosen = (effect > 0) & (place < most[:, None])
    swapped = mask.scatter(1, pruned, mask.gather(1, pruned) & ~chosen)
    return swapped.scatter(1, revived, swapped.gather(1, revived) | chosen)


REFINE_EXACT = Step(
    "refine+exact",
    refine_exact,
    words="swaps in the mask and least squares on the remaining weights taken in turn",
    help="swaps judged by the error that least squares leaves",
    damps=True,
    shrinks=True,
)
