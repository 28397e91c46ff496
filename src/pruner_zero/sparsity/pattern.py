"""Patterns: which weights a mask prunes, given the scores of all weights that compete.

`prune` and the search only use the interface of a pattern: which scores it needs at once (`reach`),
whether a matrix fits (`check`), and the masks (`choose`). A new pattern is a subclass of `Pattern`.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from decimal import Decimal
from itertools import groupby
from typing import Literal, cast, get_args

from torch import Tensor

from pruner_zero.choices import Group, Scope, check_sparsity
from pruner_zero.errors import PrunerZeroError, did_you_mean
from pruner_zero.sparsity.selection import (
    BLOCK_COLUMNS,
    comparable,
    keep_blocks,
    keep_highest,
    keep_n_of_m,
    pruned_count,
)
from pruner_zero.sparsity.threshold import global_threshold

# The scores that a pattern needs before it can choose the mask of a matrix.
Reach = Literal["matrix", "block", "model"]

SCOPES: tuple[Scope, ...] = get_args(Scope)


class LazyTensors(Mapping[str, Tensor]):
    """Tensors by name, each computed anew whenever it is asked for, so that none is held."""

    def __init__(self, names: Collection[str], compute: Callable[[str], Tensor]) -> None:
        self._names, self._compute = names, compute

    def __getitem__(self, name: str) -> Tensor:
        return self._compute(name)

    def __contains__(self, name: object) -> bool:
        # Mapping's own method would compute the tensor.
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


class Pattern(ABC):
    """Which weights are pruned: the interface of patterns. Subclasses are frozen dataclasses.

    sparsity: the share of weights that are pruned, in [0, 1).
    A subclass has to implement `choose`; the other methods have defaults for a pattern that
    compares the weights of one matrix, and that no step after the mask may change.
    """

    sparsity: float

    @property
    def reach(self) -> Reach:
        """The scores that `choose` takes in one call: of a matrix, a block or the whole model."""
        return "matrix"

    @property
    def stacks(self) -> bool:
        """Whether matrices of one width can be masked as one matrix that has the rows of all.

        True where weights compete inside rows, or where all weights compete. Among equal scores,
        those in the first rows are pruned first.
        """
        return False

    @property
    def scope(self) -> Scope | None:
        """The comparison group of an unstructured pattern; None for all other patterns."""
        return None

    def check(self, name: str, shape: tuple[int, int]) -> None:
        """Refuse the matrix `name` of `shape` (out, in) before any work. Raises PrunerZeroError."""
        del name, shape

    @abstractmethod
    def choose(self, scores: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The masks, bool (out, in), True = kept, of the matrices that `scores` holds by name.

        scores: (out, in) in float32, bfloat16 or float16, lowest pruned first, of all matrices of
        one group of the pattern's `reach`. Both mappings may be lazy: a value is then computed
        whenever it is asked for, and should be asked for once a pass.
        Raises PrunerZeroError naming the matrix for scores that are not finite.
        """

    def within_matrices(self) -> "Pattern":
        """The same pattern where no matrix competes with another."""
        return self

    def with_scope(self, scope: Group) -> "Pattern":
        """The same pattern with another comparison group, where it leaves a choice."""
        del scope
        return self

    @property
    def swap_columns(self) -> int | None:
        """In how many consecutive columns of a row a swap exchanges a pruned and a kept weight.

        None for the whole row; 1 allows no swap. A number divides every width that `check` admits.
        """
        return 1

    @property
    def sweep_columns(self) -> int | None:
        """How many columns a sweep over columns chooses at a time; None where it cannot choose."""
        return None

    def choose_columns(self, scores: Tensor, start: int) -> Tensor:
        """The mask of some consecutive columns, chosen by a sweep that goes from left to right.

        scores (out, columns), finite fp32, of the columns that begin at `start`, a multiple of
        `sweep_columns`; the result has their shape.
        """
        raise NotImplementedError(f"pattern {self} has no sweep_columns")


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
            return LazyTensors(scores, lambda name: threshold.mask(scores[name], name))
        return LazyTensors(scores, lambda name: self._mask(scores[name], name))

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
    def swap_columns(self) -> None:
        return None

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

    @property
    def stacks(self) -> bool:
        return True

    def choose(self, scores: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return LazyTensors(scores, lambda name: self._mask(scores[name], name))

    def _mask(self, scores: Tensor, name: str) -> Tensor:
        scores = comparable(scores, name)
        self.check(name, (scores.shape[0], scores.shape[1]))
        return keep_n_of_m(scores, self.n, self.m)

    @property
    def swap_columns(self) -> int:
        return self.m

    @property
    def sweep_columns(self) -> int:
        return self.m

    def choose_columns(self, scores: Tensor, start: int) -> Tensor:
        return keep_n_of_m(scores, self.n, self.m)

    def __str__(self) -> str:
        return f"{self.n}:{self.m}"


def keep_mask(scores: Tensor, pattern: Pattern, name: str = "matrix") -> Tensor:
    """The mask of one matrix that competes with no other; arguments as in `Pattern.choose`."""
    return pattern.within_matrices().choose({name: scores})[name]


def groups(pattern: Pattern, blocks: Mapping[str, int]) -> list[list[str]]:
    """The matrices whose masks `pattern` chooses together, in order.

    blocks: by the name of each matrix the number of its block, matrices of one block together.
    """
    if pattern.reach == "model":
        return [list(blocks)]
    if pattern.reach == "block":
        return [list(names) for _, names in groupby(blocks, key=blocks.__getitem__)]
    return [[name] for name in blocks]


def choose_masks(
    pattern: Pattern,
    names: Collection[str],
    scores: Mapping[str, Tensor],
    magnitudes: Callable[[str], Tensor],
) -> Mapping[str, Tensor]:
    """The masks of the matrices `names`, all of one group of the pattern's reach.

    A matrix without `scores` was never reached by calibration: it is scored by its `magnitudes`,
    and does not compete with matrices that have scores. Raises what `Pattern.choose` raises.
    """
    masks = pattern.choose(scores)
    unreached = dict.fromkeys(name for name in names if name not in scores)
    by_magnitude = pattern.within_matrices().choose(LazyTensors(unreached, magnitudes))

    def mask(name: str) -> Tensor:
        return by_magnitude[name] if name in unreached else masks[name]

    return LazyTensors(names, mask)
