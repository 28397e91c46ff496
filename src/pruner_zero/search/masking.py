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
    shares: Mapping[str, float] | None = None,
) -> Iterator[Tensor]:
    """The masks (out, in), True = kept, of all matrices, in order.

    terminals: of each matrix, fp32. Under an N:M `pattern` the scope decides nothing. shares:
    the sparsity of each matrix by name, in place of the pattern's, for no global scope. A
    matrix that calibration never reached goes by magnitude and competes with no other.
    Raises ScoreError where the expression cannot score a matrix.
    """
    if isinstance(pattern, SemiStructured) or scope != "global":
        own = pattern if isinstance(pattern, SemiStructured) else _within(pattern, scope)
        for name, statistics in zip(names, terminals, strict=True):
            scores = reached_score(expression, statistics)
            groups = own if shares is None else Unstructured(shares[name], scope)
            yield keep_mask(statistics["W"] if scores is None else scores, groups, name)
        return
    alone: dict[int, Tensor] = {}
    competing: dict[str, Tensor] = {}
    for index, (name, statistics) in enumerate(zip(names, terminals, strict=True)):
        scores = reached_score(expression, statistics)
        if scores is None:
            alone[index] = keep_mask(statistics["W"], _within(pattern, "matrix"), name)
        else:
            competing[name] = scores
    masks = iter(keep_masks_global(list(competing.values()), pattern.sparsity, list(competing)))
    for index in range(len(names)):
        yield alone[index] if index in alone else next(masks)


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


def _within(pattern: Unstructured, scope: Scope) -> Unstructured:
    return Unstructured(pattern.sparsity, scope)
