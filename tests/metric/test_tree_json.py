"""The released nested JSON, read and written without loss."""

import json
from typing import Any

import pytest
from hypothesis import given

from pruner_zero.errors import PrunerZeroError
from pruner_zero.metric import Expression, from_tree, parse, to_tree
from pruner_zero.metric.tree_json import load_json
from tests.metric.strategies import expressions, lightly

RELEASED = """
{"data": "mul",
 "left": {"data": "abs",
          "left": {"data": "mul", "left": {"data": "W"}, "right": {"data": "W"}}},
 "right": {"data": "mms", "left": {"data": "G"}}}
"""


def test_the_released_tree() -> None:
    expression = from_tree(json.loads(RELEASED))
    assert str(expression) == "abs(W * W) * mms(G)"
    assert to_tree(expression) == json.loads(RELEASED)


@lightly
@given(expressions())
def test_json_is_lossless(expression: Expression) -> None:
    assert from_tree(json.loads(json.dumps(to_tree(expression)))) == expression


def test_numbers_may_be_strings_and_absent_sides_null() -> None:
    tree = {
        "data": "mul",
        "left": {"data": "0.25", "left": None, "right": None},
        "right": {"data": "W"},
    }
    assert from_tree(tree) == parse("0.25 * W")
    assert to_tree(parse("0.25 * W"))["left"] == {"data": 0.25}


W: dict[str, Any] = {"data": "W"}


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ([], "root: expected an object with 'data', not list"),
        ({}, "root: the key 'data' is missing"),
        ({"data": "w"}, "root: unknown label 'w': did you mean 'W'?"),
        ({"data": "mul", "left": W}, "root: mul needs left and right, not left"),
        ({"data": "abs"}, "root: abs needs left, not none"),
        ({"data": "abs", "left": W, "right": W}, "root: abs needs left, not left and right"),
        ({"data": "abs", "right": W}, "root: abs needs left, not right"),
        (
            {"data": "abs", "left": {"data": "mul", "left": W, "right": {"data": "mm"}}},
            "left.right: unknown label 'mm': did you mean 'mms'?",
        ),
        (
            {"data": "abs", "left": {"data": "W", "left": W}},
            "left: 'W' is no operator: remove left",
        ),
        (
            {"data": "abs", "left": {"data": "W", "name": "x"}},
            "left: unknown key 'name': known: data, left, right",
        ),
        ({"data": "abs", "lefft": W}, "root: unknown key 'lefft': did you mean 'left'?"),
        ({"data": "nan"}, "root: a constant must be a finite number, not nan"),
        ({"data": float("inf")}, "root: a constant must be a finite number, not inf"),
        (
            {"data": "power", "left": W, "right": W},
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
    with pytest.raises(PrunerZeroError, match=r"^left: unknown label .*known: D, G, .*zsn$"):
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
    doubled = W
    for _ in range(60):
        doubled = {"data": "add", "left": doubled, "right": doubled}
    with pytest.raises(PrunerZeroError, match="more than 10000 nodes"):
        from_tree(doubled)


@pytest.mark.parametrize("text", ["", "{", '{"data": W}', "9" * 5000])
def test_invalid_json(text: str) -> None:
    with pytest.raises(PrunerZeroError, match=r"^invalid JSON: [^\n]*$"):
        load_json(text)
