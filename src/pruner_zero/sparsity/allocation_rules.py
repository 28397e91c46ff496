"""Rules of allocation: by the outliers of a block (OWL), or by the measured error of a matrix."""

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from pruner_zero.devices import where_float64_is
from pruner_zero.errors import PrunerZeroError
from pruner_zero.sparsity.allocation import Allocation, at_mean

# No rule prunes a whole matrix: at least one weight in a hundred stays.
_MOST = 0.99

# OWL's M and λ as released.
_OUTLIER = 5.0
_LIMIT = 0.08

Point = tuple[float, float]


def outlier_share(scores: Sequence[Tensor]) -> float:
    """The share of a block's scores above 5 times their mean, in [0, 1].

    `scores`: of all matrices of the block, of any shapes, compared with one mean over all of them;
    OWL takes Wanda's scores |W|·X.
    Source: Yin et al. 2024 (2310.05175), section 3 (layerwise outlier distribution).
    """
    weights = sum(matrix.numel() for matrix in scores)
    sums = [where_float64_is(matrix).sum(dtype=torch.float64).item() for matrix in scores]
    mean = sum(sums) / weights
    return sum(int((matrix > _OUTLIER * mean).sum()) for matrix in scores) / weights


def owl(
    outlier_shares: Mapping[int, float],
    blocks: Mapping[str, int],
    sizes: Mapping[str, int],
    sparsity: float,
) -> Allocation:
    """OWL: the more outliers a decoder block has, the less of it is pruned.

    `outlier_shares` of each block, `blocks` the block of each matrix, `sizes` its weights. The
    outlier shares are mapped linearly from [lowest, highest] onto [0, 2λ], λ = 0.08, and
    subtracted from one constant, so that the mean is `sparsity`; all matrices of a block get its
    share. Ours: the mean is weighted by size, which is the same where all blocks have the same
    size, and shares outside [0, 0.99] are clipped while the mean is kept. Blocks with equal
    outlier shares give the same sparsity to all.
    Raises PrunerZeroError for a sparsity above 0.99 and for outlier shares that are not finite.
    Source: Yin et al. 2024 (2310.05175), section 3.
    """
    _check(sparsity)
    outliers = np.array([outlier_shares[blocks[name]] for name in sizes], np.float64)
    if not np.isfinite(outliers).all():
        raise PrunerZeroError("the outlier shares of the blocks are not all finite")
    span = np.ptp(outliers)
    spared = 2 * _LIMIT * (outliers - outliers.min()) / (span or 1.0)
    weights = np.array(list(sizes.values()), np.float64)
    shares = at_mean(lambda shift: (shift - spared).clip(0.0, _MOST), weights, sparsity, -1.0, 2.0)
    return Allocation(dict(zip(sizes, shares.tolist(), strict=True)))


def by_error(
    curves: Mapping[str, Mapping[float, float]], sizes: Mapping[str, int], sparsity: float
) -> Allocation:
    """The allocation with the least summed error at an exact total.

    `curves`: the error of each matrix at a grid of sparsities, read as a piecewise linear curve;
    at sparsity 0 it is 0 unless the grid says otherwise, and it ends with the grid or at 0.99.
    `sizes`: the weights of each matrix. Each curve is replaced by its convex lower envelope, and
    segments are taken by ascending error per pruned weight, the last one in part: the exact
    optimum over the envelopes, the solution of the Lagrangian. Ties go to the first matrix.
    Raises PrunerZeroError for errors that are not finite and for a sparsity above 0.99 or beyond
    the curves. Source: the equal-slope rule (Shoham & Gersho 1988); on layer errors of pruning,
    SPDY (Frantar & Alistarh 2022, 2201.13096).
    """
    _check(sparsity)
    shares = dict.fromkeys(sizes, 0.0)
    segments: list[tuple[float, str, float]] = []
    for name, size in sizes.items():
        segments += [
            ((y1 - y0) / ((x1 - x0) * size), name, x1 - x0)
            for (x0, y0), (x1, y1) in pairwise(_envelope(_points(curves[name], name)))
        ]
    total = sum(sizes.values())
    room = sparsity * total
    for _, name, length in sorted(segments, key=lambda segment: segment[0]):
        taken = min(length, room / sizes[name])
        shares[name] += taken
        room = max(room - taken * sizes[name], 0.0)
    if room > 1e-9 * total:
        raise PrunerZeroError(
            f"the error curves reach a sparsity of {sparsity - room / total:.4g} only, not "
            f"{sparsity:g}: measure errors at higher sparsities"
        )
    return Allocation({name: min(share, _MOST) for name, share in shares.items()})


def _check(sparsity: float) -> None:
    if not 0 <= sparsity <= _MOST:
        raise PrunerZeroError(
            "an allocation keeps a weight in a hundred of each matrix: set the sparsity to "
            f"{_MOST} or less, not {sparsity:g}"
        )


def _points(curve: Mapping[float, float], name: str) -> list[Point]:
    """The points of a piecewise linear curve from sparsity 0 to 0.99, the last one interpolated."""
    errors = {0.0: 0.0} | {float(sparsity): float(error) for sparsity, error in curve.items()}
    grid = sorted(errors)
    values = [errors[sparsity] for sparsity in grid]
    if not np.isfinite(values).all():
        raise PrunerZeroError(
            f"the errors of {name} are not finite: measure them anew or exclude the matrix"
        )
    ends = [sparsity for sparsity in grid if sparsity < _MOST]
    ends += [min(_MOST, grid[-1])] if grid[-1] > ends[-1] else []
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
