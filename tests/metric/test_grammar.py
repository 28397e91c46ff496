"""Text and trees to expressions and back without loss, and errors that point at the place."""

import json
import pickle
from typing import Any

import pytest
from hypothesis import given

from pruner_zero.errors import PrunerZeroError
from pruner_zero.metric.expression import Constant, Expression, Terminal, call
from pruner_zero.metric.grammar import ParseError, from_tree, load_json, parse, to_tree
from pruner_zero.metric.metric import Metric
from tests.metric.strategies import expressions, lightly

W, G, X = Terminal("W"), Terminal("G"), Terminal("X")


@lightly
@given(expressions())
def test_text_and_json_are_lossless(expression: Expression) -> None:
    assert parse(str(expression)) == expression
    assert from_tree(json.loads(json.dumps(to_tree(expression)))) == expression


@pytest.mark.parametrize(
    ("text", "expression"),
    [
        ("abs(W * W) * mms(G)", call("abs", W * W) * call("mms", G)),
        ("W - G - X", (W - G) - X),
        ("W - (G - X)", W - (G - X)),
        ("W / (G * X)", W / (G * X)),
        ("W * X^-0.5", W * X**-0.5),
        ("(W^2.0)^3.0", (W**2) ** 3),
        ("-W * X", -W * X),
        ("-(W * X)", -(W * X)),
        ("--W", call("neg", -W)),
        ("W - -X", W - -X),
        ("-0.5 * W", Constant(-0.5) * W),
        ("neg(0.5) * W", -Constant(0.5) * W),
        ("neg(-0.5)", -Constant(-0.5)),
        ("-2.0^2.0", -(Constant(2) ** 2)),
        ("(-2.0)^2.0", Constant(-2) ** 2),
        ("(-W)^2.0", (-W) ** 2),
        ("W - -1.0", W - -1.0),
        ("1e-05 + 1e+16 * W", 1e-5 + 1e16 * W),
        ("div(W, X)", call("div", W, X)),
        ("max(W, min(G, X))", call("max", W, call("min", G, X))),
    ],
)
def test_canonical_text(text: str, expression: Expression) -> None:
    assert parse(text) == expression
    assert str(expression) == text


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("  mul(W,X)", "W * X"),
        ("add(sub(W, G), quotient(W, X))", "W - G + W / X"),
        ("power(X, 0.5)", "X^0.5"),
        ("power(X, -.5)", "X^-0.5"),
        ("neg(W)", "-W"),
        ("((W))", "W"),
        ("W*\n\tX", "W * X"),
        ("- 2 * W", "-2.0 * W"),
        ("2.E1*W", "20.0 * W"),
        ("-0 * W", "0.0 * W"),
    ],
)
def test_other_spellings(text: str, canonical: str) -> None:
    assert str(parse(text)) == canonical


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "column 1: expected a terminal, a number or an operator before the end of the text"),
        ("W * * X", "column 5: expected a terminal, a number or an operator before '*'"),
        ("W ** 2", "column 3: write ^ for a power, not **"),
        ("w * X", "column 1: unknown name 'w': did you mean 'W'?"),
        ("W * tahn", "column 5: unknown name 'tahn': did you mean 'tanh'?"),
        ("W * sqrtt(X)", "column 5: unknown operator 'sqrtt': did you mean 'sqrt'?"),
        ("abs(W", "column 6: expected ')' before the end of the text to close the '(' at column 4"),
        ("abs(W X)", "column 7: expected ')' before 'X' to close the '(' at column 4"),
        ("W)", "column 2: expected an operator before ')'"),
        ("3W", "column 2: expected an operator before 'W'"),
        ("mms", "column 1: mms is an operator: put its operands in parentheses"),
        ("W(X)", "column 1: W is a terminal and takes no operands"),
        ("X + mms(W, X)", "column 5: mms takes 1 operand, not 2"),
        ("abs()", "column 1: abs takes 1 operand, not 0"),
        ("W^X", "column 3: the exponent of a power must be a number, not 'X'"),
        ("W^(2)", "column 3: the exponent of a power must be a number, not '('"),
        ("power(W, X)", "column 1: the exponent of a power must be a number"),
        ("W^2^3", "column 4: put the power before this '^' in parentheses"),
        ("W * 1e999", "column 5: a constant must be a finite number, not inf"),
        ("W ? X", "column 3: unexpected character '?'"),
        ("W × X", r"column 3: unexpected character '\xd7'"),
        ("__import__('os')", 'column 12: unexpected character "\'"'),
    ],
)
def test_errors_name_the_column_and_what_to_change(text: str, message: str) -> None:
    with pytest.raises(ParseError) as caught:
        parse(text)
    assert str(caught.value) == message
    assert caught.value.column == int(message.split()[1].rstrip(":"))
    assert str(pickle.loads(pickle.dumps(caught.value))) == message


@pytest.mark.parametrize(
    "text",
    ["(" * 20000, "-" * 20000 + "W", "abs(" * 20000, "W + (" * 15000, "(" * 101 + "W" + ")" * 101],
)
def test_deep_nesting_is_refused(text: str) -> None:
    with pytest.raises(ParseError, match="nested deeper than 100 levels"):
        parse(text)


def test_the_deepest_expressions_can_be_written_and_deeper_ones_are_refused() -> None:
    assert parse("(" * 100 + "W" + ")" * 100) == W
    negated: Expression = W
    powers: Expression = W
    sums: Expression = W
    for _ in range(99):
        negated, sums, powers = -negated, X - sums, powers**2
    for expression in (negated, powers, sums):
        assert expression.depth == 100
        assert parse(str(expression)) == expression
    with pytest.raises(ParseError, match="column 200: an expression can have at most 100 levels"):
        parse("+".join(["W"] * 200))


def test_huge_text_is_refused_at_once_and_in_a_short_line() -> None:
    for read in (parse, Metric.of):
        with pytest.raises(PrunerZeroError, match=r"^.{,300}$"):
            read("W" * 100_000_000)
    for name, shown in (("a" * 100_000, "'a{39}…'"), ("foobar", "'foobar': known: .*zsn$")):
        with pytest.raises(ParseError, match=rf"^column 1: unknown name {shown}"):
            parse(name)


RELEASED = """
{"data": "mul",
 "left": {"data": "abs",
          "left": {"data": "mul", "left": {"data": "W"}, "right": {"data": "W"}}},
 "right": {"data": "mms", "left": {"data": "G"}}}
"""


def test_numbers_may_be_strings_and_absent_sides_null() -> None:
    number = {"data": "0.25", "left": None, "right": None}
    tree = {"data": "mul", "left": number, "right": {"data": "W"}}
    assert from_tree(tree) == parse("0.25 * W")
    assert to_tree(parse("0.25 * W"))["left"] == {"data": 0.25}


LEAF: dict[str, Any] = {"data": "W"}


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ([], "root: expected an object with 'data', not list"),
        ({}, "root: the key 'data' is missing"),
        ({"data": "w"}, "root: unknown label 'w': did you mean 'W'?"),
        ({"data": "mul", "left": LEAF}, "root: mul needs left and right, not left"),
        ({"data": "abs"}, "root: abs needs left, not none"),
        ({"data": "abs", "left": LEAF, "right": LEAF}, "root: abs needs left, not left and right"),
        ({"data": "abs", "right": LEAF}, "root: abs needs left, not right"),
        (
            {"data": "abs", "left": {"data": "mul", "left": LEAF, "right": {"data": "mm"}}},
            "left.right: unknown label 'mm': did you mean 'mms'?",
        ),
        (
            {"data": "abs", "left": {"data": "W", "left": LEAF}},
            "left: 'W' is no operator: remove left",
        ),
        (
            {"data": "abs", "left": {"data": "W", "name": "x"}},
            "left: unknown key 'name': known: data, left, right",
        ),
        ({"data": "abs", "lefft": LEAF}, "root: unknown key 'lefft': did you mean 'left'?"),
        ({"data": "nan"}, "root: a constant must be a finite number, not nan"),
        ({"data": float("inf")}, "root: a constant must be a finite number, not inf"),
        (
            {"data": "power", "left": LEAF, "right": LEAF},
            "root: the exponent of a power must be a number",
        ),
    ],
)
def test_errors_name_the_place(tree: object, message: str) -> None:
    with pytest.raises(PrunerZeroError) as caught:
        from_tree(tree)
    assert str(caught.value) == message


@pytest.mark.parametrize("label", [True, None, [], {}, 10**400])
def test_labels_of_another_kind(label: object) -> None:
    with pytest.raises(PrunerZeroError, match=r"^left: unknown label .*known: D, F, G, .*zsn$"):
        from_tree({"data": "abs", "left": {"data": label}})


@pytest.mark.parametrize("levels", [101, 10_000, 200_000])
def test_deep_json_is_refused(levels: int) -> None:
    text = '{"data": "abs", "left": ' * (levels - 1) + '{"data": "W"}' + "}" * (levels - 1)
    with pytest.raises(PrunerZeroError, match=r"^the tree is nested deeper than 100 levels$"):
        from_tree(load_json(text))


def test_dictionaries_that_unfold_without_end_are_refused() -> None:
    endless: dict[str, Any] = {"data": "abs"}
    endless["left"] = endless
    with pytest.raises(PrunerZeroError, match="deeper than 100 levels"):
        from_tree(endless)
    doubled = LEAF
    for _ in range(60):
        doubled = {"data": "add", "left": doubled, "right": doubled}
    with pytest.raises(PrunerZeroError, match="more than 10000 nodes"):
        from_tree(doubled)


def test_invalid_json() -> None:
    for text in ("", "{", '{"data": LEAF}', "9" * 5000):
        with pytest.raises(PrunerZeroError, match=r"^invalid JSON: [^\n]*$"):
            load_json(text)
