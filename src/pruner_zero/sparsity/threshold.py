"""Where scores part when all weights of a model compete, without sorting or joining them."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pruner_zero.errors import PrunerZeroError
from pruner_zero.sparsity.pattern import pruned_count

Counts = NDArray[np.int64]

# A working set that stays in a core's cache, in weights; found by measurement. NumPy runs on
# it rather than torch, whose threads meet after every operation: on a machine with other
# work each meeting may cost a time slice.
CHUNK = 1 << 18

_HALF_KEYS = 1 << 16


@dataclass(frozen=True)
class GlobalThreshold:
    """The lowest score that may stay when all weights compete with each other.

    value: scores above it stay, those below go. ties: how many of the scores equal to it go
    in each matrix, its first ones; all of them in a matrix that is not named.
    """

    value: float
    ties: Mapping[str, int]

    def mask(self, scores: Tensor, name: str) -> Tensor:
        """The mask (out, in) of the matrix `name`, True = kept."""
        # In float32, since a lower precision would round the threshold of another matrix.
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
    column. The threshold comes from two histograms, of the upper and of the lower half of an
    integer key that orders like the float. Raises PrunerZeroError naming the matrix for
    non-finite scores. Source: ours.
    """
    counts = np.zeros(_HALF_KEYS, np.int64)
    for name, scores in stream():
        counts += _histogram(comparable(scores, name))
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


def keep_masks_global(
    scores: Sequence[Tensor], sparsity: float, names: Sequence[str] | None = None
) -> list[Tensor]:
    """The masks of all matrices when all their weights compete with each other.

    `scores`: matrices (out, in) of any shapes and devices, dtypes as in `keep_mask`; a sequence
    that computes its items on access streams the model. Exactly floor(n · sparsity) of all n
    weights are pruned; ties go to the lowest matrix, row, column. Raises PrunerZeroError naming
    the matrix (`names`, each its own) for non-finite scores. Source: ours.
    """
    if names is None:
        names = [f"matrix {index}" for index in range(len(scores))]
    threshold = global_threshold(lambda: zip(names, scores, strict=True), sparsity)
    return [threshold.mask(one, name) for name, one in zip(names, scores, strict=True)]


def comparable(scores: Tensor, name: str) -> Tensor:
    """The scores as float32, which holds every supported dtype exactly, once they are finite."""
    if scores.dim() != 2:
        raise ValueError(f"scores of {name} have shape {tuple(scores.shape)}, not (out, in)")
    if scores.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise TypeError(f"scores of {name} are {scores.dtype}: convert them with .float()")
    if scores.numel() and not torch.stack(scores.aminmax()).isfinite().all():
        raise PrunerZeroError(
            f"scores of {name} are not finite: choose another metric or exclude the matrix"
        )
    return scores.detach().float().contiguous()


def _from_order_key(key: int) -> float:
    """The float whose order key is `key`."""
    bits = torch.tensor(key, dtype=torch.int32)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).view(torch.float32).item()


def _histogram(scores: Tensor, upper: int | None = None) -> Counts:
    """Counts (65536,) of the order keys' upper halves, or of the lower halves below `upper`.

    The int32 key of a float32 orders as the float does; both zeros share one.
    """
    if scores.device.type != "cpu":
        return _histogram_anywhere(scores, upper)
    counts = np.zeros(_HALF_KEYS, np.int64)
    for chunk in scores.float().flatten().split(CHUNK):
        bits = (chunk.numpy() + np.float32(0)).view(np.int32)
        key = bits ^ ((bits >> 31) & 0x7FFFFFFF)
        half = (key >> 16) + _HALF_KEYS // 2
        if upper is not None:
            half = key[half == upper] & (_HALF_KEYS - 1)
        counts += np.bincount(half, minlength=_HALF_KEYS)
    return counts


def _histogram_anywhere(scores: Tensor, upper: int | None = None) -> Counts:
    """`_histogram` for devices that NumPy does not reach."""
    bits = (scores.float().flatten() + 0.0).view(torch.int32)
    key = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    half = (key >> 16) + _HALF_KEYS // 2
    if upper is not None:
        half = key[half == upper] & (_HALF_KEYS - 1)
    counts: Counts = half.bincount(minlength=_HALF_KEYS).cpu().numpy()
    return counts


def _bin_of(counts: Counts, rank: int) -> tuple[int, int]:
    """The bin that holds the `rank`-th smallest value (from 1), and the count before it."""
    reached = counts.cumsum()
    found = int(reached.searchsorted(rank))
    return found, int(reached[found] - counts[found])
