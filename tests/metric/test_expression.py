"""Expressions are immutable values: structure, limits, equality, replacement."""

import copy
import pickle
import subprocess
import sys
from dataclasses import FrozenInstanceError

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pruner_zero.errors import PrunerZeroError
from pruner_zero.metric.expression import Constant, Expression, Terminal, call
from pruner_zero.metric.grammar import parse
from pruner_zero.metric.operators import Shape
from pruner_zero.metric.scoring import evaluate
from tests.metric.strategies import constants, expressions, lightly, matrices, tame, terminals

W, G, X, D, S = (Terminal(name) for name in "WGXDS")


def test_what_an_expression_knows_about_itself() -> None:
    released = parse("abs(W * W) * mms(G) + 0.5")
    assert (released.size, released.depth, released.shape) == (9, 5, Shape.MATRIX)
    assert released.terminals == {"W", "G"}
    assert released.leaf_counts() == {"W": 2, "G": 1, "0.5": 1}
    assert released.operator_counts() == {"add": 1, "mul": 2, "abs": 1, "mms": 1}
    assert repr(released) == "parse('abs(W * W) * mms(G) + 0.5')"
    assert list(released.meanings()) == ["W", "G", "abs", "mms"]
    assert "<math" in released._repr_html_()
    assert "<code>abs(W * W) * mms(G) + 0.5</code>" in released._repr_html_()


@lightly
@given(expressions())
def test_cached_facts_equal_their_definitions(expression: Expression) -> None:
    def depth(node: Expression) -> int:
        return 1 + max((depth(operand) for operand in node.operands), default=0)

    nodes = list(expression.walk())
    assert expression.size == len(nodes)
    assert expression.depth == depth(expression)
    assert expression.terminals == {node.name for node in nodes if isinstance(node, Terminal)}
    assert sum(expression.leaf_counts().values()) == sum(not node.operands for node in nodes)
    assert sum(expression.operator_counts().values()) == sum(bool(n.operands) for n in nodes)


@lightly
@given(expressions(leaves=tame), matrices(least=2))
def test_shape_and_sign_hold_for_the_values(
    expression: Expression, tensors: dict[str, torch.Tensor]
) -> None:
    values = evaluate(expression, tensors)
    if not expression.shape.value[0]:
        torch.testing.assert_close(values, values[:1].expand_as(values), equal_nan=True)
    if not expression.shape.value[1]:
        torch.testing.assert_close(values, values[:, :1].expand_as(values), equal_nan=True)
    if expression.nonnegative:
        assert (values.nan_to_num(0) >= 0).all()


@lightly
@given(expressions(), st.data())
def test_equality_and_hash_follow_the_structure(
    expression: Expression, data: st.DataObject
) -> None:
    for twin in (copy.deepcopy(expression), pickle.loads(pickle.dumps(expression))):
        assert twin == expression
        assert hash(twin) == hash(expression)
    candidate = data.draw(terminals | constants) if expression.size < 3 else expression.operands[0]
    assert (candidate == expression) == (str(candidate) == str(expression))
    assert expression != str(expression)


def test_a_pickled_expression_is_found_in_a_set_of_another_process() -> None:
    script = (
        "import pickle, sys; from pruner_zero.metric.grammar import parse;"
        "assert pickle.load(sys.stdin.buffer) in {parse('abs(W * X) + 0.5')}"
    )
    data = pickle.dumps(parse("abs(W * X) + 0.5"))
    subprocess.run([sys.executable, "-c", script], input=data, check=True)


@lightly
@given(expressions(), expressions(max_leaves=3), st.data())
def test_replacing_a_node(expression: Expression, subtree: Expression, data: st.DataObject) -> None:
    index = data.draw(st.integers(0, expression.size - 1))
    before = list(expression.walk())
    assert expression.replace(index, before[index]) == expression
    try:
        changed = expression.replace(index, subtree)
    except PrunerZeroError:
        # Only the exponent of a power cannot become everything.
        assert isinstance(before[index], Constant)
        return
    assert changed.size == expression.size - before[index].size + subtree.size
    after = list(changed.walk())
    assert after[index] == subtree
    assert after[index + subtree.size :] == before[index + before[index].size :]
    assert list(expression.walk()) == before
    for place in (-1, expression.size):
        with pytest.raises(IndexError, match=f"node {place} of an expression of"):
            expression.replace(place, subtree)


def test_nothing_can_be_changed() -> None:
    for expression, field in ((W, "name"), (Constant(1), "value"), (W * X, "operands")):
        with pytest.raises(FrozenInstanceError):
            setattr(expression, field, None)
        with pytest.raises(FrozenInstanceError):
            expression.size = 5
        assert not hasattr(expression, "__dict__")


def test_python_operators_build_the_same_trees() -> None:
    assert parse("-W + 1 - X * 2") == -W + 1 - X * 2
    assert parse("(W / X)^0.5") == (W / X) ** 0.5
    right = [1 + W, 1 - W, 2 * W, 2 / W]
    assert [parse(text) for text in ("1 + W", "1 - W", "2 * W", "2 / W")] == right


def test_numbers_of_one_hash_stay_apart_and_there_is_one_zero() -> None:
    # Python's hash of -1 is that of -2.
    assert hash(Constant(-1)) == hash(Constant(-2))
    assert Constant(-1) != Constant(-2)
    assert W * -1 != W * -2
    assert str(Constant(-0.0)) == "0.0"


def chain(levels: int) -> Expression:
    expression: Expression = W
    for _ in range(levels - 1):
        expression = call("abs", expression)
    return expression


def test_limits_of_depth_and_size() -> None:
    assert chain(100).depth == 100
    assert pickle.loads(pickle.dumps(chain(100))) == chain(100)
    with pytest.raises(PrunerZeroError, match="at most 100 levels"):
        chain(101)
    with pytest.raises(PrunerZeroError, match="at most 100 levels"):
        chain(60).replace(59, chain(60))
    doubled: Expression = W
    while doubled.size < 5000:
        doubled = doubled + doubled
    with pytest.raises(PrunerZeroError, match="at most 10000 nodes"):
        doubled + doubled


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Terminal("w"), "unknown terminal 'w': did you mean 'W'?"),
        (lambda: Constant(float("nan")), "a constant must be a finite number, not nan"),
        (lambda: Constant(10**400), "a constant must be a finite number, not inf"),
        (lambda: call("sqare", W), "unknown operator 'sqare': did you mean 'sqr'?"),
        (lambda: call("mms", W, X), "mms takes 1 operand, not 2"),
        (lambda: call("mul", W), "mul takes 2 operands, not 1"),
        (lambda: call("power", W, X), "the exponent of a power must be a number"),
    ],
)
def test_what_cannot_be_built(build: object, message: str) -> None:
    assert callable(build)
    with pytest.raises(PrunerZeroError) as caught:
        build()
    assert str(caught.value) == message


def test_the_exponent_of_a_power_is_that_of_its_operator_or_its_number() -> None:
    nodes = call("sqr", W), call("power", W, Constant(-0.5)), call("mul", W, X)
    assert [node.exponent for node in nodes] == [2, -0.5, None]
