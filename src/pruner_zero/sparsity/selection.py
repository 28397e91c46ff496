"""Scores → mask: the lowest of every comparison group, exactly as a stable sort would choose.

Nothing is sorted where only a threshold is needed. The threshold is the largest pruned score;
weights above it stay, and only where equal scores lie on both sides does order matter.
"""

import math
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pruner_zero.errors import PrunerZeroError

BLOCK_COLUMNS = 128

# A working set that stays in a core's cache, in weights; found by measurement. NumPy is used rather
# than torch, whose threads synchronise after every operation: on a busy machine each
# synchronisation may cost a time slice.
CHUNK = 1 << 18

# Above this, M² comparisons cost more than partitioning each group.
_LARGEST_COMPARED_M = 16


def pruned_count(weights: int, sparsity: float) -> int:
    """The zeros a comparison group of `weights` weights gets: floor(weights · sparsity).

    `sparsity` stands for the shortest decimal that names the float, the number the user
    typed: 100 weights at 0.29 give 29, where the float product 28.999… would give 28.
    Source: ours.
    """
    return math.floor(weights * Fraction(str(sparsity)))


def comparable(scores: Tensor, name: str) -> Tensor:
    """The scores (out, in) of the matrix `name` as float32, which holds every supported dtype.

    Raises PrunerZeroError for scores that are not finite, ValueError and TypeError for other
    shapes and dtypes than float32, bfloat16 and float16.
    """
    if scores.dim() != 2:
        raise ValueError(f"scores of {name} have shape {tuple(scores.shape)}, not (out, in)")
    if scores.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise TypeError(f"scores of {name} are {scores.dtype}: convert them with .float()")
    if scores.numel() and not torch.stack(scores.aminmax()).isfinite().all():
        raise PrunerZeroError(
            f"scores of {name} are not finite: choose another metric or exclude the matrix"
        )
    return scores.detach().float().contiguous()


def keep_highest(rows: Tensor, pruned: int) -> Tensor:
    """The mask that drops the `pruned` lowest of each row, ties by lowest column.

    `rows` (groups, weights), finite float32 or float64, 0 ≤ pruned ≤ weights; unchecked.
    Source: ours.
    """
    if pruned in (0, rows.shape[1]):
        return torch.full(rows.shape, pruned == 0, dtype=torch.bool, device=rows.device)
    if rows.device.type != "cpu":
        return _keep_above(rows, rows.kthvalue(pruned, dim=1, keepdim=True).values, pruned)
    threshold, tied = _thresholds(rows, pruned)
    keep = rows > threshold
    chunk = max(1, CHUNK // rows.shape[1])
    for index in tied.nonzero()[:, 0].split(chunk):
        keep[index] = _keep_above(rows[index], threshold[index], pruned)
    return keep


def _keep_above(rows: Tensor, threshold: Tensor, pruned: int) -> Tensor:
    """The mask of `keep_highest`, given each row's `pruned`-th smallest value (groups, 1).

    No value is read from the device, so that the host does not wait for it.
    """
    ties = rows == threshold
    spare = pruned - (rows < threshold).sum(1, keepdim=True)
    return (rows > threshold) | (ties & (ties.cumsum(1, dtype=torch.int32) > spare))


def keep_n_of_m(scores: Tensor, n: int, m: int) -> Tensor:
    """The mask that drops the `n` lowest of each `m` consecutive columns, ties by lowest column.

    `scores` (out, in), floats without NaN, in divisible by m; unchecked.
    Source: the pattern from SparseGPT (2301.00774), the selection by ranks is ours.
    """
    groups = scores.reshape(-1, m)
    if m > _LARGEST_COMPARED_M:
        return keep_highest(groups, n).view(scores.shape)
    keep = torch.empty(groups.shape, dtype=torch.bool, device=scores.device)
    if scores.device.type != "cpu":
        after = torch.arange(m - 1, -1, -1, dtype=torch.uint8, device=scores.device)
        ranks = after[:, None].repeat(1, len(groups))
        _drop_lowest(groups.t().contiguous(), ranks, keep, n, torch.uint8)
        return keep.view(scores.shape)
    # NumPy's arrays take the same operations, and it compares three times as fast as torch.
    chunk = max(1, CHUNK // m)
    for part, out in zip(groups.split(chunk), keep.split(chunk), strict=True):
        planes = np.ascontiguousarray(part.numpy().T)
        counts = np.empty(planes.shape, np.uint8)
        counts[:] = np.arange(m - 1, -1, -1, dtype=np.uint8)[:, None]
        _drop_lowest(planes, counts, out.numpy(), n, np.uint8)
    return keep.view(scores.shape)


def _drop_lowest(planes: Any, ranks: Any, keep: Any, n: int, byte: Any) -> None:
    """Write into `keep` (groups, m), bool, where a score is not among its group's `n` lowest.

    All three are tensors, or all are arrays. planes (m, groups): the scores, contiguous for each
    position in the group, so that compares run at full width. ranks (m, groups), of dtype `byte`:
    how many positions come after each one, on entry.
    """
    for later in range(1, len(planes)):
        # An equal score that stands earlier is pruned earlier.
        first = (planes[:later] <= planes[later]).view(byte)
        ranks[:later] -= first
        for earlier in first:
            ranks[later] += earlier
    for place, rank in enumerate(ranks):
        keep[:, place] = rank >= n


def keep_blocks(scores: Tensor, sparsity: float) -> Tensor:
    """The mask whose groups are 128 consecutive columns of all rows, the last maybe fewer.

    `scores` (out, in), finite float32; unchecked. Source: SparseGPT (2301.00774).
    """
    masks = [
        keep_highest(block.reshape(1, -1), pruned_count(block.numel(), sparsity)).view(block.shape)
        for block in scores.split(BLOCK_COLUMNS, dim=1)
    ]
    return torch.cat(masks, dim=1)


def _thresholds(rows: Tensor, pruned: int) -> tuple[Tensor, Tensor]:
    """Each row's `pruned`-th smallest value (groups, 1), and where the next one equals it.

    NumPy's vectorised quickselect is over twice as fast as torch's on a CPU.
    """

    def of_chunk(chunk: Tensor) -> tuple[Tensor, Tensor]:
        parted = np.partition(chunk.numpy(), pruned - 1, axis=1)
        threshold = parted[:, pruned - 1 : pruned].copy()
        tied = parted[:, pruned:].min(axis=1) == threshold[:, 0]
        return torch.from_numpy(threshold), torch.from_numpy(tied)

    chunks = rows.split(max(1, CHUNK // rows.shape[1]))
    if len(chunks) == 1:
        return of_chunk(rows)
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        thresholds, tied = zip(*pool.map(of_chunk, chunks), strict=True)
    return torch.cat(thresholds), torch.cat(tied)
