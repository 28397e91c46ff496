"""The threshold of all scores of a model together, without sorting or joining them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pruner_zero.errors import PrunerZeroError

Counts = NDArray[np.int64]

# A working set that stays in a core's cache, in weights; found by measurement. NumPy is used rather
# than torch, whose threads synchronise after every operation: on a busy machine each
# synchronisation may cost a time slice.
CHUNK = 1 << 18

_HALF_KEYS = 1 << 16

# The number of scores whose keys a device holds at a time.
_DEVICE_CHUNK = 1 << 24


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


@dataclass(frozen=True)
class GlobalThreshold:
    """The largest pruned score where all weights compete with each other.

    value: scores above it are kept, scores below it are pruned. ties: how many of the scores
    equal to it are pruned in each matrix, the first ones; all of them in a matrix without entry.
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


def global_threshold(scores: Mapping[str, Tensor], sparsity: float) -> GlobalThreshold:
    """The threshold at which exactly floor(n · sparsity) of all n weights are pruned.

    scores: by matrix name, (out, in) of any shapes and devices in float32, bfloat16 or float16.
    A mapping that computes its values when they are asked for is read twice; ties go to the lowest
    matrix, row, column. The threshold comes from two histograms, of the upper and of the lower half
    of an integer key that orders like the float. Raises PrunerZeroError naming the matrix for
    non-finite scores. Source: radix selection; its use on floats of many matrices is ours.
    """
    counts = np.zeros(_HALF_KEYS, np.int64)
    for name, values in scores.items():
        counts += _histogram(comparable(values, name))
    pruned = pruned_count(int(counts.sum()), sparsity)
    if pruned == 0:
        return GlobalThreshold(-torch.inf, {})
    upper, below = _bin_of(counts, pruned)
    counts[:] = 0
    # Of each matrix: its lower halves within the bin, ascending, and how often they occur.
    of_matrix: dict[str, tuple[Counts, Counts]] = {}
    for name, values in scores.items():
        histogram = _histogram(values.detach(), upper)
        halves = histogram.nonzero()[0]
        of_matrix[name] = halves, histogram[halves]
        counts += histogram
    lower, within = _bin_of(counts, pruned - below)
    remaining = pruned - below - within
    value = _from_order_key(((upper - _HALF_KEYS // 2) << 16) | lower)
    if remaining == counts[lower]:
        return GlobalThreshold(value, {})
    ties = {}
    for name, (halves, often) in of_matrix.items():
        ties[name] = min(int(often[halves == lower].sum()), remaining)
        remaining -= ties[name]
    return GlobalThreshold(value, ties)


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
    first = ((upper or 0) - _HALF_KEYS // 2) << 16
    least, beyond = _from_order_key(first), _from_order_key(first + _HALF_KEYS)
    for chunk in scores.float().flatten().split(CHUNK):
        values = chunk.numpy()
        if upper is not None:
            values = values[(values >= least) & (values < beyond)]
        bits = (values + np.float32(0)).view(np.uint32)
        halves = bits >> 16 if upper is None else bits & (_HALF_KEYS - 1)
        counts += np.bincount(halves, minlength=_HALF_KEYS)
    if upper is None:
        # Counted by raw bits: there negative floats come last, in descending order.
        return np.concatenate([counts[: _HALF_KEYS // 2 - 1 : -1], counts[: _HALF_KEYS // 2]])
    return counts[::-1] if upper < _HALF_KEYS // 2 else counts


def _histogram_anywhere(scores: Tensor, upper: int | None = None) -> Counts:
    """`_histogram` for devices that NumPy does not reach."""
    counts = np.zeros(_HALF_KEYS, np.int64)
    for chunk in scores.flatten().split(_DEVICE_CHUNK):
        bits = (chunk.float() + 0.0).view(torch.int32)
        key = bits ^ ((bits >> 31) & 0x7FFFFFFF)
        half = (key >> 16) + _HALF_KEYS // 2
        if upper is not None:
            half = key[half == upper] & (_HALF_KEYS - 1)
        counts += half.bincount(minlength=_HALF_KEYS).cpu().numpy()
    return counts


def _bin_of(counts: Counts, rank: int) -> tuple[int, int]:
    """The bin that holds the `rank`-th smallest value (from 1), and the count before it."""
    totals = counts.cumsum()
    index = int(totals.searchsorted(rank))
    return index, int(totals[index] - counts[index])
