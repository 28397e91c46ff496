"""Patterns of zeros, and exact selection: the mask that a stable ascending sort would choose.

Nothing is sorted where the threshold, the largest pruned score, is enough.
"""

import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from pruner_zero.choices import Group, Scope, check_sparsity
from pruner_zero.errors import PrunerZeroError, did_you_mean
from pruner_zero.sparsity.pattern import SCOPES, Lazy, Pattern, Reach
from pruner_zero.sparsity.threshold import CHUNK, comparable, global_threshold, pruned_count

BLOCK_COLUMNS = 128

# Above this, M² comparisons cost more than partitioning each group.
_LARGEST_COMPARED_M = 16


@dataclass(frozen=True)
class Unstructured(Pattern):
    """The lowest scores of every comparison group are pruned, wherever they lie.

    `sparsity` is the pruned share, in [0, 1). `scope` names the group: a `row` of the matrix
    (Wanda), a `block` of 128 columns of all rows (SparseGPT), the `matrix` (magnitude), or all
    matrices of the model (`global`). A group of n weights gets exactly floor(n · sparsity) zeros,
    and equal scores go by lowest matrix, row, column: the mask of a stable ascending sort.
    Raises PrunerZeroError for values outside these.
    Source: Wanda (2306.11695), section 3; SparseGPT (2301.00774); the selection is ours.
    """

    sparsity: float
    scope: Scope = "row"

    def __post_init__(self) -> None:
        check_sparsity(self.sparsity)
        if self.scope not in SCOPES:
            raise PrunerZeroError(
                f"unknown scope '{self.scope}': {did_you_mean(str(self.scope), SCOPES)}"
            )

    @property
    def reach(self) -> Reach:
        return "model" if self.scope == "global" else "matrix"

    @property
    def stacks(self) -> bool:
        return self.scope in ("row", "global")

    def choose(self, scores: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        if self.scope == "global":
            threshold = global_threshold(scores, self.sparsity)
            return Lazy(scores, lambda name: threshold.mask(scores[name], name))
        return Lazy(scores, lambda name: self._mask(scores[name], name))

    def _mask(self, scores: Tensor, name: str) -> Tensor:
        scores = comparable(scores, name)
        if self.scope == "row":
            return keep_highest(scores, pruned_count(scores.shape[1], self.sparsity))
        if self.scope == "block":
            return keep_blocks(scores, self.sparsity)
        return global_threshold({name: scores}, self.sparsity).mask(scores, name)

    def within_matrices(self) -> "Unstructured":
        return self.with_scope("matrix") if self.scope == "global" else self

    def with_scope(self, scope: Group) -> "Unstructured":
        return replace(self, scope=cast(Scope, scope))

    @property
    def sweep_columns(self) -> int | None:
        return BLOCK_COLUMNS if self.scope in ("row", "block") else None

    def choose_columns(self, scores: Tensor, start: int) -> Tensor:
        if self.scope == "block":
            return keep_blocks(scores, self.sparsity)
        # Rounded so that the row ends with floor(in · sparsity) zeros.
        before = pruned_count(start, self.sparsity)
        pruned = pruned_count(start + scores.shape[1], self.sparsity) - before
        return keep_highest(scores.contiguous(), pruned)

    def __str__(self) -> str:
        percent = (Decimal(str(self.sparsity)) * 100).normalize()
        group = "global" if self.scope == "global" else f"per {self.scope}"
        return f"{percent:f}% {group}"


@dataclass(frozen=True)
class SemiStructured(Pattern):
    """N zeros in each group of M consecutive weights along the input dimension.

    This is the pruning papers' meaning; hardware papers name the kept weights instead.
    Any 0 < N < M. Ties go to the lowest column. Raises PrunerZeroError for other values.
    Source: SparseGPT (2301.00774), section 3.
    """

    n: int
    m: int
    sparsity: float = field(init=False, repr=False, compare=False)

    stacks = True

    def __post_init__(self) -> None:
        if not 0 < self.n < self.m:
            raise PrunerZeroError(
                f"pattern {self.n}:{self.m} must prune some of each group but not all: "
                "choose N and M with 0 < N < M, such as 2:4"
            )
        object.__setattr__(self, "sparsity", self.n / self.m)

    @classmethod
    def parse(cls, text: str) -> "SemiStructured":
        """The pattern that `text` names, such as "2:4". Raises PrunerZeroError."""
        groups = re.fullmatch(r"(\d+)\s*:\s*(\d+)", text.strip())
        if groups is None:
            raise PrunerZeroError(
                f"--pattern is '{text}': write N:M such as 2:4, or give a share as --sparsity"
            )
        return cls(int(groups[1]), int(groups[2]))

    def check(self, name: str, shape: tuple[int, int]) -> None:
        if shape[1] % self.m:
            raise PrunerZeroError(
                f"input width {shape[1]} of {name} is not divisible by {self.m}: "
                "choose another M or exclude the matrix"
            )

    def choose(self, scores: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return Lazy(scores, lambda name: self._mask(scores[name], name))

    def _mask(self, scores: Tensor, name: str) -> Tensor:
        scores = comparable(scores, name)
        self.check(name, (scores.shape[0], scores.shape[1]))
        return keep_n_of_m(scores, self.n, self.m)

    @property
    def sweep_columns(self) -> int:
        return self.m

    def choose_columns(self, scores: Tensor, start: int) -> Tensor:
        return keep_n_of_m(scores, self.n, self.m)

    def __str__(self) -> str:
        return f"{self.n}:{self.m}"


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
