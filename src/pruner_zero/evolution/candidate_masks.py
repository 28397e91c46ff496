"""The masks that a candidate gives to many matrices, chosen as `prune` chooses them."""

from collections.abc import Callable, Iterator, Mapping

from torch import Tensor

from pruner_zero.execution import UNLIMITED, TimeLimit
from pruner_zero.metric import Expression
from pruner_zero.pruning import reached_score
from pruner_zero.sparsity import Pattern, choose_masks, groups


def candidate_masks(
    expression: Expression,
    pattern: Pattern,
    blocks: Mapping[str, int],
    terminals: Callable[[str], Mapping[str, Tensor]],
    limit: TimeLimit = UNLIMITED,
) -> Iterator[Tensor]:
    """The masks (out, in), True = kept, of all matrices, in order.

    blocks: by the name of each matrix the number of its block. terminals: those of one matrix by
    its name, fp32. Raises ScoreError where the expression cannot score a matrix, PrunerZeroError
    over the time limit.
    """
    for names in groups(pattern, blocks):
        scores: dict[str, Tensor] = {}
        for name in limit.steps(names):
            values = reached_score(expression, terminals(name))
            if values is not None:
                scores[name] = values
        masks = choose_masks(pattern, names, scores, lambda name: terminals(name)["W"])
        yield from (masks[name] for name in names)
