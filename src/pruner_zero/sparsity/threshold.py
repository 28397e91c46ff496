"""The global selection for matrices that are never in memory together."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pruner_zero.sparsity.pattern import pruned_count
from pruner_zero.sparsity.selection import (
    _HALF_KEYS,
    _bin_of,
    _comparable,
    _from_order_key,
    _histogram,
)


@dataclass(frozen=True)
class GlobalThreshold:
    """The lowest score that may stay when all weights compete with each other.

    value: scores above it stay, those below go. ties: how many of the scores equal to it go
    in each matrix, its first ones; all of them in a matrix that is not named.
    """

    value: float
    ties: Mapping[str, int]

    def mask(self, scores: Tensor, name: str) -> Tensor:
        """The mask (out, in) of the matrix `name`, True = kept, as `keep_masks_global` gives it."""
        values = scores.detach().float().contiguous()
        keep = values > self.value
        if name in self.ties:
            tied = (values == self.value).flatten().nonzero()[:, 0]
            keep.view(-1)[tied[self.ties[name] :]] = True
        return keep


def global_threshold(
    stream: Callable[[], Iterable[tuple[str, Tensor]]], sparsity: float
) -> GlobalThreshold:
    """The threshold at which exactly floor(n · sparsity) of all n weights go.

    stream: each call yields the name and the scores (out, in) of every matrix, always the
    same and in the same order, dtypes as in `keep_mask`. It is called twice, and a third time
    where scores equal to the threshold lie on both sides; ties go to the lowest matrix, row,
    column. Raises PrunerZeroError naming the matrix for non-finite scores. Source: ours.
    """
    counts = np.zeros(_HALF_KEYS, np.int64)
    for name, scores in stream():
        counts += _histogram(_comparable(scores, name))
    pruned = pruned_count(int(counts.sum()), sparsity)
    if pruned == 0:
        return GlobalThreshold(-torch.inf, {})
    upper, below = _bin_of(counts, pruned)
    counts[:] = 0
    for _, scores in stream():
        counts += _histogram(scores.detach(), upper)
    lower, within = _bin_of(counts, pruned - below)
    left = pruned - below - within
    value = _from_order_key(((upper - _HALF_KEYS // 2) << 16) | lower)
    if left == counts[lower]:
        return GlobalThreshold(value, {})
    ties = {}
    for name, scores in stream():
        own = int((scores.detach().float() == value).sum())
        ties[name] = min(own, left)
        left -= ties[name]
    return GlobalThreshold(value, ties)
