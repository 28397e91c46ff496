"""The masks a candidate gives to many matrices, as `prune` would choose them."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

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

# The sparsity of each matrix by name.
Shares = Mapping[str, float]
# From the shares that a global scope chooses by itself to those that are to be.
Moved = Callable[[Shares], Shares]


def choose_masks(
    terminals: Iterable[Mapping[str, Tensor]],
    expression: Expression,
    scope: Scope,
    pattern: Pattern,
    names: Sequence[str],
    shares: Shares | Moved | None = None,
) -> Iterator[Tensor]:
    """The masks (out, in), True = kept, of all matrices, in order.

    terminals: of each matrix, fp32. Under an N:M `pattern` the scope decides nothing. shares:
    in place of the pattern's; under a global scope, what becomes of those that it chooses by
    itself, within matrices then. A matrix that calibration never reached goes by magnitude and
    competes with no other. Raises ScoreError where the expression cannot score a matrix.
    """
    if not isinstance(pattern, SemiStructured) and scope == "global":
        if isinstance(shares, Mapping):
            raise ValueError("under a global scope, say how its own shares are moved")
        yield from _choose_globally(terminals, expression, pattern, names, shares)
        return
    if callable(shares):
        raise ValueError("only a global scope has shares of its own to move")
    for name, statistics in zip(names, terminals, strict=True):
        scores = reached_score(expression, statistics)
        groups: Pattern = pattern
        if isinstance(pattern, Unstructured):
            groups = Unstructured(pattern.sparsity if shares is None else shares[name], scope)
        yield keep_mask(statistics["W"] if scores is None else scores, groups, name)


def _choose_globally(
    terminals: Iterable[Mapping[str, Tensor]],
    expression: Expression,
    pattern: Unstructured,
    names: Sequence[str],
    moved: Moved | None,
) -> Iterator[Tensor]:
    scores: dict[str, Tensor] = {}
    alone: dict[str, Tensor] = {}
    for name, statistics in zip(names, terminals, strict=True):
        found = reached_score(expression, statistics)
        if found is None:
            alone[name] = statistics["W"]
        else:
            scores[name] = found
    masks = dict(
        zip(
            scores,
            keep_masks_global(list(scores.values()), pattern.sparsity, list(scores)),
            strict=True,
        )
    )
    for name, weight in alone.items():
        masks[name] = keep_mask(weight, Unstructured(pattern.sparsity, "matrix"), name)
    if moved is None:
        yield from (masks[name] for name in names)
        return
    shares = moved(pruned_shares(names, (masks[name] for name in names)))
    ranked = scores | alone
    for name in names:
        yield keep_mask(ranked[name], Unstructured(shares[name], "matrix"), name)


def pruned_shares(names: Iterable[str], masks: Iterable[Tensor]) -> Shares:
    """How much of each matrix the masks of the same order prune."""
    return {
        name: 1 - int(mask.sum()) / mask.numel() for name, mask in zip(names, masks, strict=True)
    }


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
