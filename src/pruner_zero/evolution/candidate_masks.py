"""The masks that a candidate gives to many matrices, chosen as `prune` chooses them."""

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TypeVar

from torch import Tensor

from pruner_zero.execution import UNLIMITED, TimeLimit
from pruner_zero.pruning import LazyScores
from pruner_zero.sparsity import Pattern, choose_masks, groups


class _Placed(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def block(self) -> int: ...


M = TypeVar("M", bound=_Placed)


def candidate_masks(
    pattern: Pattern,
    matrices: Sequence[M],
    score: Callable[[M], Tensor | None],
    magnitudes: Callable[[M], Tensor],
    limit: TimeLimit = UNLIMITED,
) -> Iterator[Tensor]:
    """The masks (out, in), True = kept, of all matrices, in order.

    score: the scores of a matrix, None where calibration never reached it; such a matrix is scored
    by its `magnitudes`. Raises what `score` raises, PrunerZeroError over the time limit.
    """
    by_name = {matrix.name: matrix for matrix in matrices}
    blocks = {matrix.name: matrix.block for matrix in matrices}

    def checked(name: str) -> Tensor | None:
        limit.check()
        return score(by_name[name]) if name in by_name else None

    for names in groups(pattern, blocks):
        scores = LazyScores(names.copy, checked)
        masks = choose_masks(pattern, names, scores, lambda name: magnitudes(by_name[name]))
        yield from (masks[name] for name in names)
