"""The numerics of the operators; their facts are tested by `tests.suites`."""

import math
from itertools import product

import pytest
import torch

from pruner_zero.metric.operators import OPERATORS, PUBLISHED, Operator, Shape
from tests.suites.operators import OperatorSuite

CLAIMS = [name for name in dir(OperatorSuite) if name.startswith("test_")]


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("claim", CLAIMS)
def test_what_every_operator_states_holds(name: str, claim: str) -> None:
    suite = OperatorSuite()
    suite.operator = OPERATORS[name]
    getattr(suite, claim)()


def test_the_registry_begins_with_the_published_set_and_cannot_change() -> None:
    released = "sqr neg abs log exp sqrt tanh pow skp mms zsn add sub mul div"
    assert list(PUBLISHED) == list(OPERATORS)[:15] == released.split()
    with pytest.raises(TypeError):
        OPERATORS["own"] = OPERATORS["abs"]  # type: ignore[index]


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
        "matrix_normalize": [[0.6, -0.8], [0.0, 0.0]],
    }.items():
        torch.testing.assert_close(OPERATORS[name].apply(x), torch.tensor(expected))
    assert OPERATORS["column_share"].apply(torch.zeros(2, 2)).eq(0).all()


def test_small_counts_entries_under_a_tenth_of_the_mean_magnitude() -> None:
    x = torch.tensor([[0.0, -0.05], [2.0, -2.0]])
    torch.testing.assert_close(OPERATORS["small"].apply(x), torch.tensor([[0.5]]))


def test_the_result_of_any_number_of_operands_has_their_broadcast_shape() -> None:
    clip = Operator("clip", 3, torch.clamp)
    for operands in product(Shape, repeat=3):
        sizes = torch.broadcast_shapes(*(operand.sizes((3, 4)) for operand in operands))
        assert clip.shape(*operands).sizes((3, 4)) == tuple(sizes)


def test_nothing_that_saturates_claims_to_be_increasing() -> None:
    for name, dtype in (("exp", torch.float64), ("tanh", torch.float32)):
        low, high = OPERATORS[name].apply(torch.tensor([100.0, 101.0], dtype=dtype))
        assert low == high
        assert OPERATORS[name].increasing == "never"
    assert [OPERATORS[name].degree for name in ("log", "exp", "tanh")] == [None] * 3


def test_what_a_fact_implies_needs_no_statement() -> None:
    cube = Operator("cube", 1, lambda x: x.abs() ** 3, exponent=3)
    assert (cube.degree, cube.sign, cube.parity) == (3, "nonnegative", "even")
    assert cube.increasing == "nonnegative"
    half = Operator("half", 1, lambda x: x / 2, factor=0.5)
    assert (half.degree, half.sign, half.parity, half.increasing) == (1, "keeps", "odd", "always")
    assert OPERATORS["neg"].increasing == "never"
    assert (OPERATORS["zsn"].degree, OPERATORS["zsn"].sign) == (0, "any")
    assert (OPERATORS["row_share"].parity, OPERATORS["row_share"].sign) == ("odd", "keeps")


def test_the_family_and_the_description_follow_from_the_facts() -> None:
    for family, names in {
        "power": "power sqrt",
        "matrix rescaling": "mms matrix_normalize",
        "row or column rescaling": "row_share column_normalize",
        "transcendental": "log tanh",
        "other": "abs div mul small",
    }.items():
        assert {OPERATORS[name].family for name in names.split()} == {family}
    described = {
        "sqr": "|x|^2",
        "abs": "|x|",
        "power": "|x|^y",
        "neg": "-1 * x",
        "quotient": "x / y",
        "max": "max(x, y)",
        "div": "x / Frobenius norm of y",
    }
    assert {name: OPERATORS[name].described for name in described} == described
