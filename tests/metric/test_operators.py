"""Every operator's numerics and every fact it states, on random tensors."""

import math
import pickle
from collections.abc import Callable
from itertools import product

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from pruner_zero.metric import EXTENDED, OPERATORS, PUBLISHED, Constant, Operator, Shape, Terminal
from pruner_zero.metric.expression import Call
from tests.metric.strategies import lightly

seeds = st.integers(0, 2**31)
sizes = st.tuples(st.integers(2, 5), st.integers(2, 5))


def every(claim: Callable[[Operator], bool]) -> pytest.MarkDecorator:
    """The operators that make a claim, one test each."""
    operators = [operator for operator in OPERATORS.values() if claim(operator)]
    return pytest.mark.parametrize("operator", operators, ids=lambda operator: operator.name)


each = every(lambda operator: True)


def random(sizes: tuple[int, int], seed: int, nonnegative: bool = False) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(sizes, generator=generator, dtype=torch.float64)
    return x.abs() if nonnegative else x


def operands(
    operator: Operator, sizes: tuple[int, int], seed: int, nonnegative: bool = False
) -> list[Tensor]:
    if operator.name == "power":
        return [random(sizes, seed, nonnegative), torch.tensor([[1.5]], dtype=torch.float64)]
    return [random(sizes, seed + place, nonnegative) for place in range(operator.arity)]


def groups(x: Tensor, reach: str) -> list[Tensor]:
    """The entries that are comparable with each other under a reach."""
    if reach == "row":
        return list(x)
    return list(x.T) if reach == "column" else [x.flatten()]


def test_the_registry_holds_both_sets_and_cannot_change() -> None:
    released = "sqr neg abs log exp sqrt tanh pow skp mms zsn add sub mul div"
    assert list(PUBLISHED) == released.split()
    assert set(OPERATORS) == {*PUBLISHED, *EXTENDED}
    with pytest.raises(TypeError):
        OPERATORS["own"] = OPERATORS["abs"]  # type: ignore[index]


@each
def test_an_operator_stays_itself_across_processes(operator: Operator) -> None:
    assert pickle.loads(pickle.dumps(operator)) is operator


@pytest.mark.parametrize(
    ("name", "x", "expected"),
    [
        ("sqr", -3.0, 9.0),
        ("pow", -3.0, 9.0),
        ("neg", 2.0, -2.0),
        ("abs", -2.0, 2.0),
        ("log", 0.0, math.log(0.001)),
        ("log", -1.0, math.log(1.001)),
        ("exp", 1.0, math.e),
        ("exp", 1e9, math.inf),
        ("sqrt", -4.0, 2.0),
        ("tanh", 0.5, math.tanh(0.5)),
        ("skp", -7.0, -7.0),
        ("mms", 1.0, math.nan),
        ("zsn", 1.0, math.nan),
        ("small", 1.0, 0.0),
    ],
)
def test_unary_numerics_as_released(name: str, x: float, expected: float) -> None:
    result = OPERATORS[name].apply(torch.tensor([[x]]))
    torch.testing.assert_close(result, torch.tensor([[expected]]), equal_nan=True)


def test_statistics_of_the_published_set_cover_the_whole_tensor() -> None:
    x, y = torch.tensor([[1.0, 2.0], [3.0, 5.0]]), torch.tensor([[3.0, 0.0], [0.0, 4.0]])
    torch.testing.assert_close(OPERATORS["mms"].apply(x), torch.tensor([[0.0, 0.25], [0.5, 1.0]]))
    torch.testing.assert_close(OPERATORS["zsn"].apply(x), (x - 2.75) / math.sqrt(8.75 / 3))
    torch.testing.assert_close(OPERATORS["div"].apply(x, y), x / 5)


def test_constant_tensors_cannot_be_scaled() -> None:
    for name in ("mms", "zsn"):
        assert OPERATORS[name].apply(torch.ones(2, 3)).isnan().all()


def test_a_quotient_by_next_to_nothing_keeps_the_sign_of_the_denominator() -> None:
    x = torch.tensor([[0.0, 1.0, 1.0, 1.0, 1.0, 0.5]])
    y = torch.tensor([[0.0, 0.0, -0.0, 1e-40, -1e-40, -2.0]])
    tiny = torch.finfo(torch.float32).tiny
    expected = torch.tensor([[0.0, 1 / tiny, 1 / tiny, 1 / tiny, -1 / tiny, -0.25]])
    torch.testing.assert_close(OPERATORS["quotient"].apply(x, y), expected)
    assert OPERATORS["quotient"].apply(torch.tensor([[9.0]]), torch.zeros(1, 1)).isinf()


def test_a_power_is_of_the_magnitude() -> None:
    result = OPERATORS["power"].apply(torch.tensor([[-4.0, 9.0]]), torch.tensor([[0.5]]))
    torch.testing.assert_close(result, torch.tensor([[2.0, 3.0]]))


def test_shares_and_norms_go_along_rows_or_columns_and_give_zero_for_zeros() -> None:
    x = torch.tensor([[3.0, -4.0], [0.0, 0.0]])
    for name, expected in {
        "row_share": [[3 / 7, -4 / 7], [0.0, 0.0]],
        "column_share": [[1.0, -1.0], [0.0, 0.0]],
        "row_normalize": [[0.6, -0.8], [0.0, 0.0]],
        "column_normalize": [[1.0, -1.0], [0.0, 0.0]],
    }.items():
        torch.testing.assert_close(OPERATORS[name].apply(x), torch.tensor(expected))
    assert OPERATORS["column_share"].apply(torch.zeros(2, 2)).eq(0).all()


def test_small_counts_entries_under_a_tenth_of_the_mean_magnitude() -> None:
    x = torch.tensor([[0.0, -0.05], [2.0, -2.0]])
    torch.testing.assert_close(OPERATORS["small"].apply(x), torch.tensor([[0.5]]))


def test_forms_join_by_broadcasting() -> None:
    for one, other in product(Shape, Shape):
        sizes = torch.broadcast_shapes(one.sizes((3, 4)), other.sizes((3, 4)))
        assert one.join(other).sizes((3, 4)) == tuple(sizes)


@each
def test_the_shape_rule_predicts_the_shape_of_the_result(operator: Operator) -> None:
    for forms in product(Shape, repeat=operator.arity):
        if operator.name == "power" and forms[1] is not Shape.SCALAR:
            continue
        result = operator.apply(*[random(form.sizes((3, 4)), 0) for form in forms])
        assert tuple(result.shape) == operator.shape(*forms).sizes((3, 4))


@every(lambda operator: operator.reach != "matrix")
@lightly
@given(sizes=sizes, seed=seeds)
def test_an_entry_depends_on_nothing_beyond_the_reach(
    operator: Operator, sizes: tuple[int, int], seed: int
) -> None:
    first, *others = operands(operator, sizes, seed)
    changed = random(sizes, seed + 9)
    rows = slice(None) if operator.reach == "column" else slice(1)
    columns = slice(None) if operator.reach == "row" else slice(1)
    changed[rows, columns] = first[rows, columns]
    before, after = operator.apply(first, *others), operator.apply(changed, *others)
    torch.testing.assert_close(before[rows, columns], after[rows, columns])


@every(lambda operator: operator.increasing != "never" or operator.name == "power")
@lightly
@given(sizes=sizes, seed=seeds)
def test_the_order_of_the_first_operand_is_kept_where_increasing_says_so(
    operator: Operator, sizes: tuple[int, int], seed: int
) -> None:
    exponent = Constant(1.5)
    fact = operator.increasing
    if operator.name == "power":
        fact = Call(operator, (Terminal("W"), exponent)).increasing
    first, *others = operands(operator, sizes, seed, nonnegative=fact == "nonnegative")
    # Entries are compared with each other, so the other operands must be the same for all.
    others = [other if operator.reach == "matrix" else other[:1, :1] for other in others]
    result = operator.apply(first, *others)
    for x, y in zip(groups(first, operator.reach), groups(result, operator.reach), strict=True):
        order = x.argsort()
        assume((x[order].diff() > 1e-6).all())
        assert (y[order].diff() > 0).all()


@pytest.mark.parametrize("name", ["exp", "tanh"])
def test_results_tie_only_from_the_stated_saturation_on(name: str) -> None:
    operator = OPERATORS[name]
    below, above = operator.saturates * 0.99, operator.saturates * 1.01
    # exp overflows fp32 before its clamp, so its order is tested in fp64.
    dtype = torch.float64 if name == "exp" else torch.float32
    x = torch.tensor([[0.0, below - 0.5, below, above, above + 1]], dtype=dtype)
    result = operator.apply(x)
    assert (result[0, :3].diff() > 0).all()
    assert result[0, 3] == result[0, 4]


@every(lambda operator: operator.sign != "any")
@lightly
@given(sizes=sizes, seed=seeds)
def test_the_sign_of_the_result(operator: Operator, sizes: tuple[int, int], seed: int) -> None:
    result = operator.apply(*operands(operator, sizes, seed, nonnegative=operator.sign == "keeps"))
    assert (result >= 0).all()


@every(lambda operator: operator.degree is not None or operator.name == "power")
@lightly
@given(sizes=sizes, seed=seeds, magnitude=st.floats(0.01, 100))
def test_a_positive_factor_comes_out_as_the_degree_says(
    operator: Operator, sizes: tuple[int, int], seed: int, magnitude: float
) -> None:
    outputs, inputs = sizes
    within = {
        "element": (outputs, inputs),
        "row": (outputs, 1),
        "column": (1, inputs),
        "matrix": (1, 1),
    }[operator.reach]
    factor = magnitude * (0.5 + random(within, seed + 5).abs())
    degree = operator.degree
    values = operands(operator, sizes, seed)
    scaled = [factor * value for value in values]
    if operator.name == "power":
        degree = Call(operator, (Terminal("W"), Constant(1.5))).degree
        scaled[1] = values[1]
    assert degree is not None
    torch.testing.assert_close(operator.apply(*scaled), factor**degree * operator.apply(*values))


@pytest.mark.parametrize("name", ["log", "exp", "tanh"])
def test_no_degree_is_claimed_where_none_exists(name: str) -> None:
    assert OPERATORS[name].degree is None


def test_a_power_decreases_under_a_negative_exponent() -> None:
    power = OPERATORS["power"]
    assert Call(power, (Terminal("W"), Constant(-1))).increasing == "never"
    assert Call(power, (Terminal("W"), Constant(0))).increasing == "never"
