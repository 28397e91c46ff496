"""The masks a candidate gives to many matrices, as `prune` would choose them."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

from torch import Tensor

from pruner_zero.metric import Expression, ScoreError, score
from pruner_zero.sparsity import (
    Pattern,
    Scope,
    SemiStructured,
    Unstructured,
    keep_mask,
    keep_masks_global,
)


def choose_masks(
    terminals: Iterable[Mapping[str, Tensor]],
    expression: Expression,
    scope: Scope,
    pattern: Pattern,
    names: Sequence[str],
) -> Iterator[Tensor]:
    """The masks (out, in), True = kept, of all matrices, in order.

    terminals: of each matrix, fp32. Under an N:M `pattern` the scope decides nothing. A matrix
    that calibration never reached is masked by magnitude and competes with no other. Raises
    ScoreError where the expression cannot score a matrix.
    """
    if not isinstance(pattern, SemiStructured) and scope == "global":
        yield from _choose_globally(terminals, expression, pattern, names)
        return
    groups = pattern
    if isinstance(pattern, Unstructured):
        groups = Unstructured(pattern.sparsity, scope)
    for name, statistics in zip(names, terminals, strict=True):
        scores = reached_score(expression, statistics)
        yield keep_mask(statistics["W"] if scores is None else scores, groups, name)


def _choose_globally(
    terminals: Iterable[Mapping[str, Tensor]],
    expression: Expression,
    pattern: Unstructured,
    names: Sequence[str],
) -> Iterator[Tensor]:
    scores: dict[str, Tensor] = {}
    alone: dict[str, Tensor] = {}
    for name, statistics in zip(names, terminals, strict=True):
        found = reached_score(expression, statistics)
        if found is None:
            alone[name] = statistics["W"]
        else:
            scores[name] = found
    chosen = keep_masks_global(list(scores.values()), pattern.sparsity, list(scores))
    masks = dict(zip(scores, chosen, strict=True))
    for name, weight in alone.items():
        masks[name] = keep_mask(weight, Unstructured(pattern.sparsity, "matrix"), name)
    yield from (masks[name] for name in names)


def reached_score(expression: Expression, terminals: Mapping[str, Tensor]) -> Tensor | None:
    """The scores of one matrix, None where a statistic it needs was never fed by calibration.

    Raises ScoreError where the metric itself fails.
    """
    silent = [name for name in expression.terminals & {"X", "G"} if not terminals[name].any()]
    if "X" in silent:
        return None
    try:
        return score(expression, terminals)
    except ScoreError:
        if silent:
            return None
        raise
