"""Layer-wise sparsity by published rules: from one number a block to a share for each matrix."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from pruner_zero.devices import where_float64_is
from pruner_zero.errors import PrunerZeroError
from pruner_zero.sparsity.allocation import Allocation, Shares, at_mean

# No rule empties a matrix: one weight in a hundred stays unless the caller says otherwise.
BOUNDS = (0.0, 0.99)

# Beyond this, a logit's share is 0 or 1 in float64.
_LARGEST_LOGIT = 750.0

# Logits are taken of shares at least so far from 0 and 1.
_SMALLEST_SHARE = 1e-9


def uniform(sizes: Mapping[str, int], sparsity: float) -> Allocation:
    """The same share for every matrix. Raises PrunerZeroError outside [0, 1)."""
    return Allocation(dict.fromkeys(sizes, sparsity))


def outlier_share(scores: Sequence[Tensor], multiple: float = 5.0) -> float:
    """The share of a block's scores above `multiple` times their mean, in [0, 1].

    `scores`: those of all matrices of the block, of any shapes, compared with one mean over all
    of them; OWL takes Wanda's scores |W|·X and a multiple (its M) of 5 or 7.
    Source: Yin et al. 2024 (2310.05175), section 3 (layerwise outlier distribution).
    """
    weights = sum(matrix.numel() for matrix in scores)
    mean = (
        sum(where_float64_is(matrix).sum(dtype=torch.float64).item() for matrix in scores) / weights
    )
    return sum(int((matrix > multiple * mean).sum()) for matrix in scores) / weights


def owl(
    outlier_shares: Mapping[int, float],
    blocks: Mapping[str, int],
    sizes: Mapping[str, int],
    sparsity: float,
    *,
    limit: float = 0.08,
    bounds: tuple[float, float] = BOUNDS,
) -> Allocation:
    """OWL: the more outliers a decoder block has, the less of it is pruned.

    `outlier_shares` of each block, `blocks` the block of each matrix, `sizes` its weights. The
    outlier shares are mapped linearly from [lowest, highest] onto [0, 2·`limit`] (its λ),
    subtracted from one constant, and all matrices of a block get its share. As released, the
    constant makes the mean `sparsity`: the shares then span 2λ around it, though not
    symmetrically. Ours: the mean is weighted by size, which is the same where all blocks have
    the same size, and shares outside `bounds` are clipped while the mean is kept. Blocks with
    equal outlier shares give the uniform allocation.
    Raises PrunerZeroError for a negative limit and a sparsity outside the bounds.
    Source: Yin et al. 2024 (2310.05175), section 3.
    """
    check_bounds(sparsity, bounds)
    if limit < 0:
        raise PrunerZeroError(f"the limit of OWL is {limit}: set it to 0.08 or near, not below 0")
    spared = 2 * limit * _unit([outlier_shares[blocks[name]] for name in sizes])
    return _with_mean(-spared, sizes, sparsity, bounds)


def from_offsets(
    block_offsets: Sequence[float],
    kind_offsets: Mapping[str, float],
    blocks: Mapping[str, int],
    kinds: Mapping[str, str],
    sizes: Mapping[str, int],
    sparsity: float,
    bounds: tuple[float, float] = BOUNDS,
    start: Mapping[str, float] | None = None,
) -> Allocation:
    """Shares from one free number for each block and one for each kind of matrix.

    share = logistic(c + logit start + block offset + kind offset), clipped to `bounds`, where c is
    bisected so that the mean weighted by size is `sparsity`. Offsets are logits: zeros give the
    shares `start`, of each matrix in [0, 1], or the uniform allocation where there are none; any
    finite values give a valid one, and a constant added to all changes nothing.
    `blocks` and `kinds` of each matrix; `sizes` its weights.
    Raises PrunerZeroError for offsets that are not finite and a sparsity outside the bounds.
    Source: ours.
    """
    check_bounds(sparsity, bounds)
    offsets = np.array([block_offsets[blocks[name]] + kind_offsets[kinds[name]] for name in sizes])
    if not np.isfinite(offsets).all():
        raise PrunerZeroError("the offsets of an allocation must be finite numbers")
    if start is not None:
        first = np.array([start[name] for name in sizes])
        first = first.clip(_SMALLEST_SHARE, 1 - _SMALLEST_SHARE)
        offsets += np.log(first) - np.log1p(-first)

    def shares_at(constant: float) -> Shares:
        logits = (constant + offsets).clip(-_LARGEST_LOGIT, _LARGEST_LOGIT)
        shares: Shares = np.exp(-np.logaddexp(0.0, -logits)).clip(*bounds)
        return shares

    reach = _LARGEST_LOGIT + float(np.abs(offsets).max())
    return _allocation(sizes, at_mean(shares_at, _weights(sizes), sparsity, -reach, reach))


def check_bounds(sparsity: float, bounds: tuple[float, float]) -> None:
    """Raise PrunerZeroError unless 0 ≤ low ≤ sparsity ≤ high < 1."""
    low, high = bounds
    if not 0 <= low <= high < 1:
        raise PrunerZeroError(
            f"the bounds of an allocation are {low:g} and {high:g}: set them to 0 ≤ low ≤ high < 1"
        )
    if not low <= sparsity <= high:
        raise PrunerZeroError(
            f"sparsity {sparsity:g} is outside the allocation's bounds [{low:g}, {high:g}]: "
            "change one of them"
        )


def _unit(values: Sequence[float]) -> Shares:
    """The values mapped linearly onto [0, 1]; all 0.5 where they are equal."""
    array = np.array(values, np.float64)
    if not np.isfinite(array).all():
        raise PrunerZeroError("the numbers that decide an allocation are not all finite")
    low, high = array.min(), array.max()
    if low == high:
        return np.full(array.shape, 0.5)
    unit: Shares = (array - low) / (high - low)
    return unit


def _with_mean(
    relative: Shares, sizes: Mapping[str, int], sparsity: float, bounds: tuple[float, float]
) -> Allocation:
    """The relative shares moved by one constant and clipped so that the total is exact."""
    reach = 1.0 + float(np.abs(relative).max())
    weights = _weights(sizes)
    shares = at_mean(
        lambda shift: (relative + shift).clip(*bounds), weights, sparsity, -reach, reach
    )
    return _allocation(sizes, shares)


def _weights(sizes: Mapping[str, int]) -> Shares:
    return np.array(list(sizes.values()), np.float64)


def _allocation(sizes: Mapping[str, int], shares: Shares) -> Allocation:
    return Allocation(dict(zip(sizes, shares.tolist(), strict=True)))
