"""The numerics of the operators; their facts are tested by `tests.suites`."""

import pytest
import torch

from pruner_zero.metric.operators import OPERATORS, PUBLISHED, Operator
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


def test_a_quotient_by_next_to_nothing_keeps_the_sign_of_the_denominator() -> None:
    x = torch.tensor([[0.0, 1.0, 1.0, 1.0, 1.0, 0.5]])
    y = torch.tensor([[0.0, 0.0, -0.0, 1e-40, -1e-40, -2.0]])
    tiny = torch.finfo(torch.float32).tiny
    expected = torch.tensor([[0.0, 1 / tiny, 1 / tiny, 1 / tiny, -1 / tiny, -0.25]])
    torch.testing.assert_close(OPERATORS["quotient"].apply(x, y), expected)
    assert OPERATORS["quotient"].apply(torch.tensor([[9.0]]), torch.zeros(1, 1)).isinf()


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
