"""Layer-wise sparsity by measured error: every further weight is pruned where it costs least."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from fractions import Fraction
from itertools import pairwise

import numpy as np

from pruner_zero.errors import PrunerZeroError
from pruner_zero.sparsity.allocation import Allocation
from pruner_zero.sparsity.allocation_rules import BOUNDS, check_bounds

Point = tuple[float, float]
# What one more zero in each group of a matrix costs for each weight, and which matrix.
Step = tuple[float, str]

# How far from the greedy choice an exact total is looked for: in steps of each size, and in
# how many of the cheapest totals on the way.
_REACH, _TOTALS = 16, 4096


def by_error(
    curves: Mapping[str, Mapping[float, float]],
    sizes: Mapping[str, int],
    sparsity: float,
    *,
    importance: Mapping[str, float] | None = None,
    bounds: tuple[float, float] = BOUNDS,
) -> Allocation:
    """The shares with the least summed error, `importance` · error, at an exact total.

    `curves`: the error of each matrix at a grid of sparsities, read as a piecewise linear curve;
    at sparsity 0 it is 0 unless the grid says otherwise, and it ends where the grid or the
    bounds end. `sizes`: the weights of each matrix; `importance`: how much the loss feels its
    error, 1 where None. Each curve is replaced by its convex lower envelope, and segments are
    taken by ascending error per pruned weight, the last one in part: the exact optimum over the
    envelopes, the solution of the Lagrangian. Ties go to the first matrix.
    Raises PrunerZeroError for errors that are not finite and for a sparsity outside the bounds
    or beyond the curves. Source: ours; the method is the equal-slope rule of rate allocation.
    """
    check_bounds(sparsity, bounds)
    low, high = bounds
    shares = dict.fromkeys(sizes, low)
    segments: list[tuple[float, str, float]] = []
    for name, size in sizes.items():
        weight = 1.0 if importance is None else importance[name]
        hull = _envelope(_between(curves[name], low, high, name))
        segments += [
            (weight * (y1 - y0) / ((x1 - x0) * size), name, x1 - x0)
            for (x0, y0), (x1, y1) in pairwise(hull)
        ]
    total = sum(sizes.values())
    room = (sparsity - low) * total
    for _, name, length in sorted(segments, key=lambda segment: segment[0]):
        taken = min(length, room / sizes[name])
        shares[name] += taken
        room = max(room - taken * sizes[name], 0.0)
    if room > 1e-9 * total:
        raise PrunerZeroError(
            f"the error curves reach a sparsity of {sparsity - room / total:.4g} only, not "
            f"{sparsity:g}: measure errors at higher sparsities"
        )
    return Allocation({name: min(share, high) for name, share in shares.items()})


def mixed_n(
    errors: Mapping[str, Sequence[float]],
    sizes: Mapping[str, int],
    m: int,
    share: float,
    *,
    importance: Mapping[str, float] | None = None,
) -> dict[str, int]:
    """N of the pattern N:`m` for each matrix, with the least summed error at a mean `share`.

    `errors[name][n − 1]` is the error at n:m for n = 1 … m − 1. N = 0 and N = M are no patterns
    and never chosen: a matrix that must stay dense is excluded instead. `sizes`, `importance` as
    in `by_error`. All begin at N = 1; then one step of N after the other is taken by ascending
    error per weight on the convex lower envelope, as long as it does not lead beyond `share` of
    all weights. Where sizes differ, steps are exchanged between them for the least error at
    exactly `share`; where none of the exchanges tried is exact and m · `share` is a whole number,
    it is the N of all. So the total is exact for a whole m · `share`; for others it is never
    above, and below by less than the smallest step, size / m, that is still open. Matrices of
    equal size with convex errors get the optimum.
    Raises PrunerZeroError for errors that are not finite and a share outside [1/m, (m − 1)/m].
    Source: ours.
    """
    if not Fraction(1, m) <= Fraction(str(share)) <= Fraction(m - 1, m):
        raise PrunerZeroError(
            f"a mean sparsity of {share:g} is out of reach of N:{m}: "
            f"choose one from {1 / m:.4g} to {(m - 1) / m:.4g}"
        )
    steps: list[Step] = []
    for name, size in sizes.items():
        if len(errors[name]) != m - 1:
            raise ValueError(f"{name} has {len(errors[name])} errors, not one for each N < {m}")
        weight = 1.0 if importance is None else importance[name]
        _check_finite(errors[name], name)
        hull = _envelope([(n, error) for n, error in enumerate(errors[name], 1)])
        steps += [
            (weight * (y1 - y0) / ((x1 - x0) * size), name)
            for (x0, y0), (x1, y1) in pairwise(hull)
            for _ in range(round(x1 - x0))
        ]
    mean = Fraction(str(share)) * m
    room = (mean - 1) * sum(sizes.values())
    by_size: dict[int, list[Step]] = defaultdict(list)
    taken: dict[int, int] = defaultdict(int)
    for step in sorted(steps, key=lambda step: step[0]):
        size = sizes[step[1]]
        by_size[size].append(step)
        if size <= room:
            taken[size] += 1
            room -= size
    if len(by_size) > 1:
        exact = _exchanged(by_size, taken, room)
        if exact is None and room and mean.denominator == 1:
            return dict.fromkeys(sizes, int(mean))
        taken = exact or taken
    chosen = dict.fromkeys(sizes, 1)
    for size, own in by_size.items():
        for _, name in own[: taken[size]]:
            chosen[name] += 1
    return chosen


def _exchanged(
    by_size: Mapping[int, Sequence[Step]], taken: Mapping[int, int], room: Fraction
) -> dict[int, int] | None:
    """How many steps of each size leave no room at the least error, near those `taken`.

    The steps of each size are in the order in which they are taken. None where no counts
    that were tried leave none.
    """
    totals: dict[Fraction, tuple[float, dict[int, int]]] = {room: (0.0, {})}
    for size, own in sorted(by_size.items(), reverse=True):
        here, costs = taken[size], [cost * size for cost, _ in own]
        near = range(max(0, here - _REACH), min(len(own), here + _REACH) + 1)
        changes = {count: sum(costs[here:count]) - sum(costs[count:here]) for count in near}
        grown: dict[Fraction, tuple[float, dict[int, int]]] = {}
        for left, (cost, counts) in totals.items():
            for count, change in changes.items():
                rest = left - (count - here) * size
                if rest not in grown or cost + change < grown[rest][0]:
                    grown[rest] = (cost + change, {**counts, size: count})
        cheapest = sorted(grown.items(), key=lambda one: one[1][0])
        totals = dict(cheapest[:_TOTALS]) | {
            rest: grown[rest] for rest in (Fraction(0),) if rest in grown
        }
    return totals[Fraction(0)][1] if Fraction(0) in totals else None


def _between(curve: Mapping[float, float], low: float, high: float, name: str) -> list[Point]:
    """The points of a piecewise linear curve from `low` to `high`, both ends interpolated."""
    known = {0.0: 0.0} | {float(sparsity): float(error) for sparsity, error in curve.items()}
    grid = sorted(known)
    values = [known[sparsity] for sparsity in grid]
    _check_finite(values, name)
    high = min(high, grid[-1])
    inner = [low, *(sparsity for sparsity in grid if low < sparsity < high)]
    ends = inner if high <= low else [*inner, high]
    return list(zip(ends, np.interp(ends, grid, values).tolist(), strict=True))


def _envelope(points: Sequence[Point]) -> list[Point]:
    """The corners of the convex lower envelope of points in ascending order."""
    hull: list[Point] = []
    for x, y in points:
        while len(hull) > 1:
            (x0, y0), (x1, y1) = hull[-2:]
            if (x1 - x0) * (y - y0) > (y1 - y0) * (x - x0):
                break
            hull.pop()
        hull.append((x, y))
    return hull


def _check_finite(errors: Sequence[float], name: str) -> None:
    if not np.isfinite(errors).all():
        raise PrunerZeroError(
            f"the errors of {name} are not finite: measure them anew or exclude the matrix"
        )
