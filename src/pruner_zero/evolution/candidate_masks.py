"""The masks that a candidate gives to many matrices, chosen as `prune` chooses them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol, TypeVar

from torch import Tensor

from pruner_zero.choices import Group
from pruner_zero.execution import UNLIMITED, TimeLimit
from pruner_zero.metric import Expression
from pruner_zero.pruning import LazyScores, reached_score
from pruner_zero.sparsity import Pattern, choose_masks, groups


class _Placed(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def block(self) -> int: ...


M = TypeVar("M", bound=_Placed)


def candidate_masks(
    expression: Expression,
    scope: Group,
    pattern: Pattern,
    matrices: Sequence[M],
    terminals: Callable[[M], Mapping[str, Tensor]],
    limit: TimeLimit = UNLIMITED,
) -> Iterator[Tensor]:
    """The masks (out, in), True = kept, of all matrices, in order.

    terminals: those of one matrix, fp32. Raises ScoreError where the expression cannot score a
    matrix, PrunerZeroError over the time limit.
    """
    by_name = {matrix.name: matrix for matrix in matrices}
    blocks = {matrix.name: matrix.block for matrix in matrices}
    pattern = pattern.with_scope(scope)

    def score(name: str) -> Tensor | None:
        limit.check()
        if name not in by_name:
            return None
        return reached_score(expression, terminals(by_name[name]))

    for names in groups(pattern, blocks):
        scores = LazyScores(names.copy, score)
        masks = choose_masks(pattern, names, scores, lambda name: terminals(by_name[name])["W"])
        yield from (masks[name] for name in names)
