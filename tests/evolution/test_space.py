"""The expressions that a search space admits, and those that it refuses."""

from typing import Any

import pytest
from pydantic import ValidationError

from pruner_zero.evolution.space import PUBLISHED_SPACE, SearchSpace, positions
from pruner_zero.metric.grammar import parse
from pruner_zero.metric.operators import PUBLISHED


@pytest.mark.parametrize(
    "text",
    [
        "W",
        "W * X",
        "W * G^0.5 * X^0.25",
        "W * X + W * G",
        "(row_share(W) + column_share(W)) * X^0.5",
        "W^0.85 / row_normalize(X)",
        "exp(mms(W)) + log(G)",
        "(W * G^0.5)^1.5",
    ],
)
def test_the_default_space_admits(text: str) -> None:
    assert SearchSpace().allows(parse(text))


@pytest.mark.parametrize(
    ("text", "near"),
    [
        ("W * D", "W * O"),
        ("X", "O * X"),
        ("tanh(W)", "exp(W)"),
        ("W * 2", "W^2"),
        ("W^0.37", "W^0.35"),
        ("W^5", "W^4"),
        ("(W^2)^2", "(W^2 * G)^2"),
        ("sqrt(W^3)", "sqrt(W^3 * G)"),
        ("mms(W + zsn(G))", "mms(W) + zsn(G)"),
        ("exp(exp(W))", "exp(W) + exp(G)"),
        ("exp(W + log(G))", "exp(W) + log(G)"),
        ("row_share(W * column_share(G * row_share(W)))", "row_share(W * column_share(G * W))"),
        ("W * abs(G)", "W * abs(G - W)"),
        ("W - (G - G)", "W - (G - X)"),
        ("W * column_share(X)", "W * row_share(X)"),
        ("row_share((W * G + X * G) * (W * X + G * X))", "(W * G + X * G) * (W * X + G * X)"),
        ("W + (G + (W + (X + (G + (W + X)))))", "W + (G + (W + (X + (G + W))))"),
    ],
)
def test_the_default_space_refuses_what_breaks_a_rule(text: str, near: str) -> None:
    """`near` is like it and breaks none."""
    space = SearchSpace(max_size=15, max_depth=6)
    assert not space.allows(parse(text))
    assert space.allows(parse(near))


def test_expressions_that_are_refused_by_default_can_be_allowed() -> None:
    wide = SearchSpace(
        terminals=("W", "G", "X", "D", "S"),
        operators=("mul", "tanh", "small", "power", "sub"),
        idle=True,
    )
    for text in ("S * D", "tanh(tanh(W))", "small(W) * W", "(W^2)^2"):
        assert wide.allows(parse(text))


def test_the_published_space_is_the_released_one() -> None:
    assert set(PUBLISHED_SPACE.operators) == set(PUBLISHED)
    assert PUBLISHED_SPACE.terminals == ("W", "G", "X")
    for text in ("abs(W * W) * mms(G)", "skp(abs(W)) - W", "exp(exp(W))"):
        assert PUBLISHED_SPACE.allows(parse(text))


def test_positions_leave_exponents_out() -> None:
    nodes = [(index, str(node)) for index, node in positions(parse("W^0.5 * (X + G^2)"))]
    assert nodes == [
        (0, "W^0.5 * (X + G^2.0)"),
        (1, "W^0.5"),
        (2, "W"),
        (4, "X + G^2.0"),
        (5, "X"),
        (6, "G^2.0"),
        (7, "G"),
    ]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"operators": ("mul", "sqr_root")}, "unknown operator 'sqr_root'"),
        ({"operators": ("mul", "ads")}, "did you mean 'add'?"),
        ({"terminals": ("W", "Y")}, "unknown terminal 'Y'"),
        ({"terminals": ("X", "D")}, "one of W, G, S"),
        ({"terminals": ("W", "W")}, "occurs twice"),
        ({"scopes": ("row", "row")}, "a scope occurs twice"),
        ({"scopes": ()}, "at least 1"),
        ({"scopes": ("column",)}, "'row', 'block'"),
        ({"size": 3}, "Extra inputs"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message.replace("?", r"\?")):
        SearchSpace(**settings)
