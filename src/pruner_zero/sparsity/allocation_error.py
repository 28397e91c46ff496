"""Layer-wise sparsity by measured error: every further weight is pruned where it costs least."""

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np

from pruner_zero.errors import PrunerZeroError
from pruner_zero.sparsity.allocation import Allocation
from pruner_zero.sparsity.allocation_rules import BOUNDS, check_bounds

Point = tuple[float, float]


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
