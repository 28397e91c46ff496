"""The masks that a candidate gives to many matrices, chosen as `prune` chooses them."""

from collections.abc import Callable, Iterator, Mapping

from torch import Tensor

from pruner_zero.execution import UNLIMITED, TimeLimit
from pruner_zero.pruning.masks import choose_masks
from pruner_zero.sparsity.pattern import Lazy, Pattern, groups


def candidate_masks(
    pattern: Pattern,
    blocks: Mapping[str, int],
    score: Callable[[str], Tensor | None],
    magnitudes: Callable[[str], Tensor],
    limit: TimeLimit = UNLIMITED,
) -> Iterator[Tensor]:
    """The masks (out, in), True = kept, of all matrices, in order.

    blocks: by the name of each matrix the number of its block. score: the scores of a matrix, None
    where calibration never reached it; such a matrix is scored by its `magnitudes`. Raises what
    `score` raises, PrunerZeroError over the time limit.
    """

    def checked(name: str) -> Tensor | None:
        limit.check()
        return score(name) if name in blocks else None

    for names in groups(pattern, blocks):
        masks = choose_masks(pattern, names, Lazy(names.copy, checked), magnitudes)
        yield from (masks[name] for name in names)
