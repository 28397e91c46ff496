"""Patterns: which weights a mask prunes, given the scores of all weights that compete."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from itertools import groupby
from typing import Literal, TypeVar, get_args

from torch import Tensor

from pruner_zero.choices import Group, Scope

# The scores that a pattern needs before it can choose the mask of a matrix.
Reach = Literal["matrix", "block", "model"]

SCOPES: tuple[Scope, ...] = get_args(Scope)
T = TypeVar("T")


class Lazy(Mapping[str, T]):
    """Values by name, each computed whenever it is asked for, so that few are held at a time.

    names: all names; or a function that gives them anew at each call, and may load weights before
    a name. compute: the value of a name; None, where `names` is a function, for a name that is
    absent. hold: how many bytes of tensors, from the first on, are kept instead.
    """

    def __init__(
        self,
        names: Collection[str] | Callable[[], Iterable[str]],
        compute: Callable[[str], T | None],
        hold: int = 0,
    ) -> None:
        self._names, self._compute, self._room = names, compute, hold
        self._held: dict[str, T] = {}
        self._present: dict[str, bool] = {}
        # A value that was computed to see whether it is there, until it is asked for.
        self._seen: dict[str, T] = {}

    def __getitem__(self, name: str) -> T:
        if name in self._held:
            return self._held[name]
        value = self._seen.pop(name) if name in self._seen else self._computed(name)
        if value is None:
            raise KeyError(name)
        return value

    def __contains__(self, name: object) -> bool:
        if not callable(self._names):
            return name in self._names
        if str(name) not in self._present:
            value = self._computed(str(name))
            if value is not None:
                self._seen[str(name)] = value
        return self._present[str(name)]

    def __iter__(self) -> Iterator[str]:
        if not callable(self._names):
            return iter(self._names)
        return (name for name in self._names() if name in self)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def _computed(self, name: str) -> T | None:
        # Freed before the next value is computed.
        self._seen.clear()
        value = self._compute(name)
        self._present[name] = value is not None
        if isinstance(value, Tensor) and value.nbytes <= self._room:
            self._room -= value.nbytes
            self._held[name] = value
        return value


class Pattern(ABC):
    """Which weights are pruned: the interface of patterns. Subclasses are frozen dataclasses.

    sparsity: the share of weights that are pruned, in [0, 1). scope: the comparison group of an
    unstructured pattern. A subclass has to implement `choose`; the other methods have defaults for
    a pattern that compares the weights of one matrix, and that no step after the mask may change.
    """

    sparsity: float
    scope: Scope | None = None

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
        return self

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


def groups(pattern: Pattern, blocks: Mapping[str, int]) -> list[list[str]]:
    """The matrices whose masks `pattern` chooses together, in order.

    blocks: by the name of each matrix the number of its block, matrices of one block together.
    """
    if pattern.reach == "model":
        return [list(blocks)]
    if pattern.reach == "block":
        return [list(names) for _, names in groupby(blocks, key=blocks.__getitem__)]
    return [[name] for name in blocks]
