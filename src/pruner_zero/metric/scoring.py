"""Evaluating expressions: the scores of one weight matrix, or the reason there are none."""

from collections.abc import Mapping
from functools import lru_cache

import torch
from torch import Tensor

from pruner_zero.errors import PrunerZeroError
from pruner_zero.metric.expression import TERMINALS, Call, Constant, Expression, Terminal
from pruner_zero.metric.operators import Shape


class ScoreError(PrunerZeroError):
    """The expression gives no usable scores for a matrix; the message says why in one line."""


def evaluate(expression: Expression, terminals: Mapping[str, Tensor]) -> Tensor:
    """The value of the expression at every weight: fp32, (out, in), contiguous, in new memory.

    terminals: the statistics by name, in the shapes of TERMINALS; of any dtype, used in fp32.
        One of W, G, S is among them, whose shape is (out, in).
    Inputs are not changed. Raises ScoreError for missing terminals and wrong shapes; the values can
    be non-finite.
    """
    shape = _matrix_shape(terminals)
    _check(expression, terminals, shape)
    with torch.no_grad():
        result = _value(expression, terminals).expand(shape).contiguous()
        inputs = {tensor.untyped_storage().data_ptr() for tensor in terminals.values()}
        return result.clone() if result.untyped_storage().data_ptr() in inputs else result


def _value(node: Expression, terminals: Mapping[str, Tensor]) -> Tensor:
    if isinstance(node, Terminal):
        return terminals[node.name].to(torch.float32)
    if isinstance(node, Constant):
        device = next((tensor.device for tensor in terminals.values()), torch.device("cpu"))
        # Created on the device: a copy to a GPU would wait for all the work queued there.
        value = torch.tensor(node.value, dtype=torch.float32).item()
        return torch.full((1, 1), value, dtype=torch.float32, device=device)
    assert isinstance(node, Call)
    return node.operator.apply(*(_value(operand, terminals) for operand in node.operands))


def evaluate_stack(expression: Expression, terminals: Mapping[str, Tensor]) -> Tensor:
    """`evaluate` of n matrices of one shape at once: (n, out, in), from stacked statistics.

    Every operator is applied once to all of them, by `torch.func.vmap`, or to one after the other
    where an operator of the user's does not allow it. The scores may share memory with the
    statistics.
    """
    first = {name: values[0] for name, values in terminals.items()}
    shape = _matrix_shape(first)
    _check(expression, first, shape)

    def of_one(values: Mapping[str, Tensor]) -> Tensor:
        return _value(expression, values).expand(shape)

    with torch.no_grad():
        try:
            scores: Tensor = torch.func.vmap(of_one)(dict(terminals))
        except RuntimeError:
            # It reads values, which a batch refuses. Another error is raised again here.
            each = zip(*terminals.values(), strict=True)
            scores = torch.stack([of_one(dict(zip(terminals, v, strict=True))) for v in each])
        return scores.contiguous()


def score(expression: Expression, terminals: Mapping[str, Tensor]) -> Tensor:
    """The result of `evaluate`, or of `evaluate_stack` where one is given, if it can be ranked.

    Raises ScoreError for missing terminals, wrong shapes, a division by what is zero everywhere,
    scores that are not finite, and scores of a matrix that are all equal (unless it has a single
    entry).
    """
    if divisor := _zero_divisor(expression):
        raise ScoreError(f"it divides by {divisor}, which is zero everywhere")
    stacked = all(values.dim() == 3 for values in terminals.values())
    scores = (evaluate_stack if stacked else evaluate)(expression, terminals)
    # The usual case needs no temporaries: nan and infinities are minima or maxima. One pass finds
    # both, but for several matrices torch has no fast kernel of it.
    low, high = (scores.amin((1, 2)), scores.amax((1, 2))) if stacked else scores.aminmax()
    if not torch.isfinite(high - low).all() and not torch.isfinite(scores).all():
        kinds = {"nan": scores.isnan(), "+inf": scores.isposinf(), "-inf": scores.isneginf()}
        counts = {kind: int(mask.sum()) for kind, mask in kinds.items()}
        listed = ", ".join(f"{count} {kind}" for kind, count in counts.items() if count)
        total = sum(counts.values())
        raise ScoreError(f"{total} of {scores.numel()} scores are not finite ({listed})")
    equal, entries = low == high, scores.shape[-2] * scores.shape[-1]
    if equal.any() and entries > 1:
        value = low[equal][0].item()
        raise ScoreError(f"all {entries} scores equal {value}: nothing to rank by")
    return scores


def _matrix_shape(terminals: Mapping[str, Tensor]) -> tuple[int, int]:
    for name, statistic in TERMINALS.items():
        if statistic.shape is Shape.MATRIX and name in terminals:
            sizes = tuple(terminals[name].shape)
            if len(sizes) != 2:
                raise ScoreError(f"{name} has shape {sizes}, not two dimensions (out, in)")
            return sizes
    raise ScoreError("none of W, G, S is given, so the shape of the matrix is unknown")


@lru_cache(maxsize=4096)
def _zero_divisor(expression: Expression) -> Expression | None:
    """The first divisor of a quotient that is zero whatever the statistics, found by drawn ones.

    The quotient would be guarded, and rank by the dividend alone.
    """
    divisors = [
        node.operands[1]
        for node in expression.walk()
        if isinstance(node, Call) and node.operator.name == "quotient"
    ]
    generator = torch.Generator().manual_seed(0)
    drawn = {
        # Over many orders of magnitude, so that no value is rounded away beside all others.
        name: 10 ** torch.empty(statistic.shape.sizes((8, 9))).uniform_(-6, 6, generator=generator)
        for name, statistic in TERMINALS.items()
    }
    for name, statistic in TERMINALS.items():
        if statistic.magnitude is not None:
            # S is W with signs: drawn above zero, S - abs(S) would be zero.
            values = drawn[statistic.magnitude]
            signs = torch.empty_like(values).uniform_(-1, 1, generator=generator)
            drawn[name] = values.copysign(signs)
    return next((divisor for divisor in divisors if not _value(divisor, drawn).any()), None)


def _check(expression: Expression, terminals: Mapping[str, Tensor], shape: tuple[int, int]) -> None:
    if 0 in shape:
        raise ScoreError(f"a matrix of shape {shape} has no weights to score")
    missing = sorted(expression.terminals - terminals.keys())
    if missing:
        given = ", ".join(sorted(terminals)) or "none"
        raise ScoreError(f"missing terminals: {', '.join(missing)} (given: {given})")
    for name in sorted(expression.terminals):
        sizes, wanted = tuple(terminals[name].shape), TERMINALS[name].shape.sizes(shape)
        if sizes != wanted:
            raise ScoreError(f"{name} has shape {sizes}, not {wanted} beside a matrix {shape}")
