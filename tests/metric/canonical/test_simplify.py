"""The paper's simplification: opposing pairs vanish, nothing else does."""

import pytest
from hypothesis import given

from pruner_zero.metric.canonical.form import simplify_opposing
from pruner_zero.metric.expression import Call, Expression
from pruner_zero.metric.grammar import parse
from tests.metric.strategies import expressions, lightly


@pytest.mark.parametrize(
    ("text", "simple"),
    [
        ("exp(log(W))", "W"),
        ("log(exp(W))", "W"),
        ("sqr(sqrt(W))", "W"),
        ("sqrt(sqr(W))", "W"),
        ("pow(sqrt(W))", "W"),
        ("sqrt(pow(W))", "W"),
        ("neg(neg(W))", "W"),
        ("skp(skp(W))", "W"),
        ("sqrt(skp(sqr(W)))", "W"),
        ("exp(sqrt(sqr(log(W))))", "W"),
        ("neg(neg(neg(W)))", "-W"),
        ("exp(log(G)) * sqrt(sqr(neg(skp(neg(W)))))", "G * W"),
        # The paper's rule knows nothing of magnitudes: this one is |S|.
        ("sqrt(sqr(S))", "S"),
    ],
)
def test_pairs_that_undo_each_other_vanish(text: str, simple: str) -> None:
    assert simplify_opposing(parse(text)) == parse(simple)


@pytest.mark.parametrize(
    "text", ["sqr(pow(W))", "exp(exp(W))", "sqrt(W) * sqr(W)", "abs(abs(W))", "W - W", "W", "2.5"]
)
def test_nothing_else_vanishes(text: str) -> None:
    assert simplify_opposing(parse(text)) == parse(text)


@lightly
@given(expressions())
def test_it_never_grows_and_is_done_after_once(expression: Expression) -> None:
    simple = simplify_opposing(expression)
    assert simple.size <= expression.size
    assert simple.terminals <= expression.terminals
    assert simplify_opposing(simple) is simple
    names = {"exp", "log", "sqr", "pow", "sqrt", "neg", "skp"}
    if not any(isinstance(n, Call) and n.operator.name in names for n in expression.walk()):
        assert simple is expression
