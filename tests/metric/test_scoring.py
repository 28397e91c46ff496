"""Evaluation equals plain torch, shares work, leaves inputs alone, and rejects with a reason."""

import gc
import math
import pickle
import weakref
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from torch import Tensor

from pruner_zero.metric.expression import Call, Constant, Expression, Terminal
from pruner_zero.metric.grammar import parse
from pruner_zero.metric.operators import OPERATORS, Operator
from pruner_zero.metric.scoring import ScoreError, _zero_divisor, evaluate, evaluate_stack, score
from tests.metric.strategies import expressions, lightly, matrices, tame, terminals_of

W = Terminal("W")
TINY = torch.finfo(torch.float32).tiny


def guarded(y: Tensor) -> Tensor:
    return torch.where(y >= 0, y.clamp(min=TINY), y.clamp(max=-TINY))


def share(x: Tensor, size: Tensor) -> Tensor:
    return torch.where(size == 0, torch.zeros_like(x), x / size)


PLAIN: dict[str, Callable[..., Tensor]] = {
    "sqr": lambda x: x**2,
    "neg": lambda x: -x,
    "abs": torch.abs,
    "log": lambda x: torch.log(x.abs() + 0.001),
    "exp": lambda x: torch.exp(torch.minimum(x, torch.tensor(100.0))),
    "sqrt": lambda x: torch.sqrt(torch.abs(x)),
    "tanh": torch.tanh,
    "pow": lambda x: torch.pow(x, 2),
    "skp": lambda x: x,
    "mms": lambda x: (x - x.min()) / (x.max() - x.min()),
    "zsn": lambda x: (x - x.mean()) / (x.std() if x.numel() > 1 else torch.nan),
    "add": lambda x, y: x + y,
    "sub": lambda x, y: x - y,
    "mul": lambda x, y: x * y,
    "div": lambda x, y: x / torch.linalg.vector_norm(y),
    "quotient": lambda x, y: torch.where(y.isnan(), y, x / guarded(y)),
    "power": lambda x, y: x.abs() ** y,
    "min": torch.min,
    "max": torch.max,
    "row_share": lambda x: share(x, x.abs().sum(1, keepdim=True)),
    "column_share": lambda x: share(x, x.abs().sum(0, keepdim=True)),
    "row_normalize": lambda x: share(x, torch.linalg.vector_norm(x, dim=1, keepdim=True)),
    "column_normalize": lambda x: share(x, torch.linalg.vector_norm(x, dim=0, keepdim=True)),
    "matrix_normalize": lambda x: share(x, torch.linalg.vector_norm(x)[None, None]),
    "small": lambda x: (x.abs() < 0.1 * x.abs().mean()).float().mean().reshape(1, 1),
}


def plain(expression: Expression, tensors: dict[str, Tensor]) -> Tensor:
    if isinstance(expression, Terminal):
        return tensors[expression.name]
    if isinstance(expression, Constant):
        return torch.tensor([[expression.value]])
    assert isinstance(expression, Call)
    operands = [plain(operand, tensors) for operand in expression.operands]
    return PLAIN[expression.operator.name](*operands)


# Its ranks may differ where values differ by a rounding.
SMOOTH = [name for name, operator in OPERATORS.items() if not operator.ranks]


@lightly
@given(expressions(SMOOTH, leaves=tame), matrices())
def test_evaluation_equals_a_plain_recursion(
    expression: Expression, tensors: dict[str, Tensor]
) -> None:
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    result = evaluate(expression, tensors)
    expected = plain(expression, tensors).expand_as(tensors["W"])
    torch.testing.assert_close(result, expected, equal_nan=True)
    assert result.dtype == torch.float32
    assert result.is_contiguous()
    assert all(torch.equal(tensors[name], before[name]) for name in before)


def odds(row: Tensor) -> Tensor:
    values = row.tolist()
    # Those without a value come last.
    known = [math.inf if math.isnan(value) else value for value in values]
    columns = sorted(range(len(values)), key=lambda column: (known[column], column))
    below = {column: (rank + 0.5) / len(values) for rank, column in enumerate(columns)}
    return torch.tensor(
        [
            math.nan if math.isnan(value) else below[column] / (1 - below[column])
            for column, value in enumerate(values)
        ]
    )


@lightly
@given(matrices())
def test_odds_in_a_row_are_those_of_a_plain_sort(tensors: dict[str, Tensor]) -> None:
    x = (3 * tensors["S"]).round() / 3
    for of in (x, torch.where(x == 0, torch.nan, x), torch.ones_like(x)):
        expected = torch.stack([odds(row) for row in of])
        torch.testing.assert_close(
            evaluate(parse("row_odds(S)"), {"S": of}), expected, equal_nan=True
        )


def test_a_constant_beyond_fp32_is_infinite() -> None:
    assert evaluate(parse("min(W, 1e300)"), {"W": torch.ones(2, 2)}).eq(1).all()
    assert evaluate(parse("W * -1e300"), {"W": torch.ones(2, 2)}).isneginf().all()


@pytest.mark.parametrize("text", ["W", "skp(W)", "X", "2"])
def test_the_result_is_free_to_change(text: str) -> None:
    tensors = terminals_of(1, 4)
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    evaluate(parse(text), tensors).fill_(7)
    assert all(torch.equal(tensors[name], before[name]) for name in before)


def test_intermediate_values_are_freed_after_their_last_use() -> None:
    alive: weakref.WeakSet[Tensor] = weakref.WeakSet()
    most = 0

    def step(x: Tensor) -> Tensor:
        nonlocal most
        result = x + 1
        alive.add(result)
        most = max(most, len(alive))
        return result

    operator = Operator("step", 1, step, increasing="always", sign="keeps")
    chain: Expression = W
    for _ in range(40):
        chain = Call(operator, (chain,))
    gc.disable()
    try:
        evaluate(chain + chain, {"W": torch.ones(2, 2)})
    finally:
        gc.enable()
    # Of the second chain a value and the value before it, beside the result of the first.
    assert most == 3


def test_half_precision_inputs_are_computed_in_fp32() -> None:
    tensors = {"W": torch.full((2, 2), 300.0, dtype=torch.float16, requires_grad=True)}
    result = evaluate(parse("W * W"), tensors)
    assert (result == 90_000).all()
    assert not result.requires_grad


@pytest.mark.fault("a gradient or a score that is NaN or infinite")
@pytest.mark.parametrize(
    ("text", "change", "reason"),
    [
        ("W * D + S", {"D": None, "S": None}, "missing terminals: D, S (given: F, G, O, P, W, X)"),
        ("W * X", {"X": (4,)}, "X has shape (4,), not (1, 4) beside a matrix (3, 4)"),
        ("W * G", {"G": (4, 3)}, "G has shape (4, 3), not (3, 4) beside a matrix (3, 4)"),
        ("W", {"W": (4,)}, "W has shape (4,), not two dimensions (out, in)"),
        ("W", {"W": (0, 4)}, "a matrix of shape (0, 4) has no weights to score"),
        ("W * exp(1000)", {}, "12 of 12 scores are not finite (12 +inf)"),
        ("W * -exp(1000)", {}, "12 of 12 scores are not finite (12 -inf)"),
        ("W * mms(1)", {}, "12 of 12 scores are not finite (12 nan)"),
        ("W * 0", {}, "all 12 scores equal 0.0: nothing to rank by"),
        (
            "X",
            {"W": None, "G": None, "S": None},
            "none of W, G, S is given, so the shape of the matrix is unknown",
        ),
    ],
)
def test_rejections_give_the_reason(
    text: str, change: dict[str, tuple[int, ...] | None], reason: str
) -> None:
    tensors = terminals_of(3, 4)
    for name, sizes in change.items():
        del tensors[name]
        if sizes is not None:
            tensors[name] = torch.ones(sizes)
    with pytest.raises(ScoreError) as caught:
        score(parse(text), tensors)
    assert str(caught.value) == reason
    assert str(pickle.loads(pickle.dumps(caught.value))) == reason


def test_every_kind_of_bad_score_is_counted() -> None:
    weights = torch.tensor([[torch.nan, torch.inf, -torch.inf, 1.0]])
    with pytest.raises(ScoreError) as caught:
        score(parse("S"), {"S": weights})
    assert str(caught.value) == "3 of 4 scores are not finite (1 nan, 1 +inf, 1 -inf)"


def test_what_is_not_rejected() -> None:
    with pytest.raises(ScoreError, match="all 2 scores equal 3"):
        score(parse("W"), {"W": torch.full((1, 2), 3.0)})
    assert score(parse("W * 0"), {"W": torch.ones(1, 1)}).tolist() == [[0.0]]
    extreme = torch.tensor([[-3e38, 3e38]])
    assert torch.equal(score(parse("S"), {"S": extreme}), extreme)
    assert score(parse("W"), {"W": torch.tensor([[1.0, 1.0, 2.0]])}).shape == (1, 3)


def stack_of(count: int, outputs: int = 4, inputs: int = 6) -> dict[str, Tensor]:
    """The statistics of `count` matrices, stacked."""
    each = [terminals_of(outputs, inputs, seed) for seed in range(count)]
    return {name: torch.stack([values[name] for values in each]) for name in each[0]}


@lightly
@given(expressions())
def test_a_stack_is_evaluated_like_each_of_its_matrices(expression: Expression) -> None:
    stacked = stack_of(3)
    actual = evaluate_stack(expression, stacked)
    for place in range(3):
        alone = {name: values[place] for name, values in stacked.items()}
        expected = evaluate(expression, alone)
        torch.testing.assert_close(actual[place], expected, equal_nan=True)


def test_an_operator_that_reads_values_is_applied_to_one_matrix_after_the_other() -> None:
    def by_numpy(x: Tensor) -> Tensor:
        return torch.from_numpy(x.numpy() * 2) if x.sum().item() else x

    expression = Call(Operator("by_numpy", 1, by_numpy), (W,))
    stacked = stack_of(3)
    assert torch.equal(evaluate_stack(expression, stacked), 2 * stacked["W"])


def test_an_error_of_an_operator_in_a_stack_is_raised() -> None:
    def fails(x: Tensor) -> Tensor:
        raise RuntimeError("no such kernel")

    with pytest.raises(RuntimeError, match="no such kernel"):
        evaluate_stack(Call(Operator("fails", 1, fails), (W,)), stack_of(2))


def test_a_stack_is_scored_and_refused_like_each_of_its_matrices() -> None:
    stacked = stack_of(3)
    expected = [score(W, {"W": values}) for values in stacked["W"]]
    assert torch.equal(score(W, {"W": stacked["W"]}), torch.stack(expected))
    # One value in every row, and others in other rows, can be ranked.
    rows = torch.arange(1.0, 5.0)[None, :, None].expand(2, 4, 6)
    assert torch.equal(score(W, {"W": rows}), rows)
    equal = stacked["W"].clone()
    equal[1] = 0.5
    with pytest.raises(ScoreError, match=r"all 24 scores equal 0\.5"):
        score(W, {"W": equal})
    with pytest.raises(ScoreError, match="X has shape"):
        score(W * Terminal("X"), {**stacked, "X": stacked["X"][:, :, 1:]})


@pytest.mark.parametrize(
    "text",
    [
        *("W / 0", "W / (X - X)", "W * (G / (0 * X))", "W / (W - abs(W))", "W / (W - abs(S))"),
        "W / min(abs(S), 0)",
    ],
)
def test_a_division_by_what_is_zero_everywhere_is_refused(text: str) -> None:
    with pytest.raises(ScoreError, match=r"it divides by .*, which is zero everywhere"):
        score(parse(text), terminals_of(3, 4))


@pytest.mark.parametrize(
    "text",
    [
        *("W / small(X)", "W / (X - G)", "W / 0.001", "W / min(X, O)"),
        *("W / (S - abs(S))", "W / min(S, 0)", "W / (W + S)"),
    ],
)
def test_a_division_by_what_may_be_zero_is_not(text: str) -> None:
    assert _zero_divisor(parse(text)) is None
