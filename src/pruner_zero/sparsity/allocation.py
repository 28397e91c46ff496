"""How much of each matrix is pruned: a share by name, and the exact number of zeros."""

import json
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pruner_zero.errors import PrunerZeroError
from pruner_zero.sparsity.selection import pruned_count

Granularity = Literal["row", "matrix"]
Shares = NDArray[np.float64]

# How far the mean of an allocation may lie from the sparsity asked for: shares that were
# written with three decimals pass, an allocation made for another sparsity does not.
_TOLERANCE = 0.001

# A fraction of a zero below this is a rounding error of float shares.
_NOISE = 1e-6


@dataclass(frozen=True)
class Allocation:
    """The pruned share of every matrix, in [0, 1), by its full name.

    Raises PrunerZeroError naming the matrix for a share outside that. Source: ours.
    """

    sparsity: Mapping[str, float]

    def __post_init__(self) -> None:
        for name, share in self.sparsity.items():
            if not 0 <= share < 1:
                raise PrunerZeroError(
                    f"the allocation's sparsity of {name} is {share}, outside [0, 1): "
                    "set it to the pruned share, such as 0.5"
                )

    def total(self, sizes: Mapping[str, int]) -> float:
        """The pruned share of all weights; `sizes` holds the weights of each matrix."""
        pruned = math.fsum(self.sparsity[name] * size for name, size in sizes.items())
        return pruned / sum(sizes.values())

    def check(self, names: Collection[str]) -> None:
        """Raise PrunerZeroError where the allocation is not of the matrices `names` exactly."""
        for name in self.sparsity:
            if name not in names:
                near = get_close_matches(name, names, n=1, cutoff=0.0)
                hint = f" (the nearest is '{near[0]}')" if near else ""
                raise PrunerZeroError(
                    f"the allocation names '{name}', which is no matrix to prune{hint}: "
                    "correct the name or take it out"
                )
        missing = [name for name in names if name not in self.sparsity]
        if missing:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise PrunerZeroError(
                f"the allocation gives no sparsity for {missing[0]}{more}: "
                "add it, or exclude the matrix"
            )

    @classmethod
    def from_json(cls, text: str) -> "Allocation":
        """Read an allocation file: {"sparsity": {name: share}}. Raises PrunerZeroError."""
        try:
            stored = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise PrunerZeroError(f"the allocation is not valid JSON: {error}") from error
        if not isinstance(stored, dict) or not isinstance(stored.get("sparsity"), dict):
            raise PrunerZeroError(
                'the allocation must hold {"sparsity": {"name of a matrix": 0.5, …}}'
            )
        if surplus := sorted(set(stored) - {"sparsity"}):
            raise PrunerZeroError(
                f"the allocation holds '{surplus[0]}', but only 'sparsity' is read: take it out"
            )
        shares: dict[str, float] = stored["sparsity"]
        for name, share in shares.items():
            if isinstance(share, bool) or not isinstance(share, int | float):
                raise PrunerZeroError(
                    f"the allocation's sparsity of {name} is {share!r}: write a number, such as 0.5"
                )
        return cls(shares)


def read_allocation(file: Path) -> Allocation:
    """The allocation in a JSON file. Raises PrunerZeroError naming the file."""
    try:
        return Allocation.from_json(file.read_text())
    except OSError as error:
        raise PrunerZeroError(f"{file} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise PrunerZeroError(f"{file} is not a text file: give an allocation in JSON") from error
    except PrunerZeroError as error:
        raise PrunerZeroError(f"{file}: {error}") from error


def exact(
    allocation: Allocation,
    shapes: Mapping[str, tuple[int, int]],
    sparsity: float,
    granularity: Granularity,
) -> Allocation:
    """The allocation with which `keep_mask` prunes floor(all weights · sparsity) or just below.

    `shapes` (out, in); `granularity` is the mask's scope. Every share is rounded down, then those
    with the largest remainders go up by one step while that fits; a step is one weight for
    `matrix` and one weight of each row for `row`. By matrix the total is exact; by row it falls
    short of exact by less than one step of a matrix that could still have gone up. Every row or
    matrix keeps a weight, so matrices of a few weights can get fewer zeros than their share. Shares
    whose mean is slightly off, as in a file with few decimals, are first shifted by one constant.
    Raises PrunerZeroError for other names, and where the allocation's own mean is not `sparsity` to
    within 0.001. Source: the largest-remainder method (Hamilton).
    """
    allocation.check(shapes)
    total = allocation.total({name: rows * columns for name, (rows, columns) in shapes.items()})
    if abs(total - sparsity) > _TOLERANCE:
        raise PrunerZeroError(
            f"the allocation prunes {total:.4g} of the weights, not {sparsity:g}: "
            "set the sparsity to that, or make the allocation anew"
        )
    rows, columns = np.array(list(shapes.values())).T
    sizes = (rows * columns).astype(np.float64)
    groups = rows if granularity == "row" else np.ones_like(rows)
    widths = rows * columns // groups
    wanted = pruned_count(int(sizes.sum()), sparsity)
    given = np.array([allocation.sparsity[name] for name in shapes])
    mean = wanted / sizes.sum()
    shares = at_mean(lambda shift: (given + shift).clip(0.0, 1.0), sizes, mean, -1.0, 1.0)
    ideal = shares * sizes / groups
    zeros = np.minimum(np.floor(ideal + _NOISE).astype(np.int64), widths - 1)
    room = wanted - zeros @ groups
    for place in np.argsort(zeros - ideal, kind="stable"):
        rises = ideal[place] - zeros[place] > _NOISE
        if rises and zeros[place] + 1 < widths[place] and groups[place] <= room:
            zeros[place] += 1
            room -= groups[place]
    counts = zip(shapes, zeros.tolist(), widths.tolist(), strict=True)
    return Allocation({name: _share_of(count, width) for name, count, width in counts})


def at_mean(
    shares_at: Callable[[float], Shares], sizes: Shares, mean: float, start: float, stop: float
) -> Shares:
    """The shares `shares_at(x)` whose mean, weighted by `sizes`, is `mean`.

    `shares_at` must not fall anywhere as x goes from `start` to `stop`, and must reach the
    mean between them; x is bisected until two neighbouring floats remain. Source: bisection.
    """
    for _ in range(200):
        middle = (start + stop) / 2
        if not start < middle < stop:
            break
        if sizes @ shares_at(middle) < mean * sizes.sum():
            start = middle
        else:
            stop = middle
    return shares_at(stop)


def _share_of(zeros: int, weights: int) -> float:
    """A share for which `pruned_count` gives exactly `zeros` of `weights`.

    The quotient where that is such a share; else half a weight is added, beyond any rounding.
    """
    share = zeros / weights
    return share if pruned_count(weights, share) == zeros else (zeros + 0.5) / weights
