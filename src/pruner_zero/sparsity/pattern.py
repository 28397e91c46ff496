"""Patterns: which weights a mask prunes, given the scores of all weights that compete."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import groupby
from pathlib import Path
from typing import Any, Literal, Self, TypeVar, get_args

from torch import Tensor, nn

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
    unstructured pattern. kept: for a pattern of whole units, how many of them stay in each block,
    where `fit` knows it. kept_tokens: the numbers of the tokens that stay, empty where all do.
    unit_step: the step after the mask where units are cut out, None where no step has any effect.
    A subclass has to implement `choose`; the other methods have defaults for a pattern that
    compares the weights of one matrix, and that no step after the mask may change.
    """

    sparsity: float
    scope: Scope | None = None
    kept: int = 0
    kept_tokens: tuple[int, ...] = ()
    unit_step: str | None = None

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

    # Patterns of whole units, which are masked like weights and then cut out of the model.

    @property
    def unit(self) -> str | None:
        """The units that are cut out, such as "channels"; None where zeros stay where they are."""
        return None

    @property
    def include(self) -> Sequence[str]:
        """Patterns of the names of the matrices that lose rows or columns; empty for all."""
        return ()

    @property
    def statistic(self) -> str | None:
        """The kind of statistic by which `decide` compares units; None for the metric's scores."""
        return None

    @property
    def masks(self) -> bool:
        """Whether matrices get masks; False where nothing of a block goes."""
        return True

    @property
    def chosen_by(self) -> str | None:
        """The rule that chooses the units, in words; None where the metric chooses them."""
        return None

    def has_whole_rows(self, name: str) -> bool:
        """Whether every row of the matrix `name` is kept or pruned as a whole."""
        return False

    @property
    def decides(self) -> bool:
        """Whether `decide` has to choose the units before any mask; masks then need no scores."""
        return False

    @property
    def translation(self) -> Any:
        """The `Translation` to the tokens of the smaller model; None where it has the same."""
        return None

    def check_tokenizer(self, tokenizer: Any) -> None:
        """Raise PrunerZeroError where the pattern cannot do with the `tokenizer` of a model."""
        del tokenizer

    def fit(self, model: nn.Module) -> Self:
        """The pattern for one dense model.

        Raises PrunerZeroError where the model has no such units, or not so many can be removed.
        """
        return self

    def decide(self, model: nn.Module, scores: Mapping[str, Tensor]) -> Self:
        """The pattern with the units that go, by scores or `statistic` of the whole dense model.

        scores: by matrix name, without matrices that calibration never reached; may be lazy.
        """
        return self

    def prepare(self, language_model: Any, tokens: Tensor) -> Self:
        """Change the dense model in place before the masks, for calibration windows (n, seqlen)."""
        return self

    def size(self, model: nn.Module) -> tuple[int, int]:
        """The parameters of the model after `shrink`, and their bytes, before anything is cut."""
        parameters = list(model.parameters())
        return sum(p.numel() for p in parameters), sum(p.nbytes for p in parameters)

    def shrink(self, model: nn.Module) -> None:
        """Cut the masked units out of `model`, in place."""
        del model

    def shrunk(self, model: nn.Module) -> AbstractContextManager[None]:
        """Within the context, the masked `model` computes the outputs of the smaller model."""
        return nullcontext()

    def shrink_files(self, model: nn.Module, files: list[Path]) -> tuple[Any, list[Path]]:
        """`shrink` for a model on disk: its new configuration, and new files of its blocks.

        files: the weights of each block, as they are saved. The configuration is None where it
        stays the same.
        """
        return None, files

    def to_json(self) -> dict[str, Any]:
        """What decided which units are removed, as JSON values."""
        return {}


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
