"""Expressions as the nested JSON that Pruner-Zero released: `{"data": "mul", "left": …}`."""

import json
from collections.abc import Iterator, Mapping
from itertools import count
from typing import Any

from pruner_zero.errors import PrunerZeroError, did_you_mean, excerpt
from pruner_zero.metric.expression import (
    MAX_DEPTH,
    MAX_SIZE,
    Call,
    Constant,
    Expression,
    Terminal,
    call,
)
from pruner_zero.metric.operators import OPERATORS
from pruner_zero.metric.terminals import TERMINALS

_SIDES = ("left", "right")


def to_tree(expression: Expression) -> dict[str, Any]:
    """The nested form: an operator with left (and right), a terminal's name, or a number."""
    if isinstance(expression, Call):
        operands = zip(_SIDES, expression.operands, strict=False)
        return {
            "data": expression.operator.name,
            **{side: to_tree(operand) for side, operand in operands},
        }
    if isinstance(expression, Constant):
        return {"data": expression.value}
    assert isinstance(expression, Terminal)
    return {"data": expression.name}


def from_tree(tree: object) -> Expression:
    """Read the nested form; a number may be written as a string, an absent side as null.

    Raises PrunerZeroError naming the place, such as left.right, for unknown keys or labels,
    missing or surplus operands, numbers that are not finite, and trees beyond the limits.
    """
    return _read(tree, (), count(1))


def load_json(text: str) -> Any:
    """Decode JSON. Raises PrunerZeroError in one line for invalid or too deeply nested text."""
    try:
        return json.loads(text)
    except RecursionError:
        raise PrunerZeroError(f"the tree is nested deeper than {MAX_DEPTH} levels") from None
    except ValueError as error:
        raise PrunerZeroError(f"invalid JSON: {error}") from None


def _read(tree: object, path: tuple[str, ...], nodes: Iterator[int]) -> Expression:
    # Counted while reading: a dictionary that contains itself, or that shares subtrees, would
    # be read without end before an expression could refuse its size.
    if len(path) >= MAX_DEPTH:
        raise PrunerZeroError(f"the tree is nested deeper than {MAX_DEPTH} levels")
    if next(nodes) > MAX_SIZE:
        raise PrunerZeroError(f"the tree has more than {MAX_SIZE} nodes")
    if not isinstance(tree, Mapping):
        raise _wrong(path, f"expected an object with 'data', not {type(tree).__name__}")
    if "data" not in tree:
        raise _wrong(path, "the key 'data' is missing")
    for key in tree:
        if key not in ("data", *_SIDES):
            word = excerpt(key, 40)
            raise _wrong(path, f"unknown key {word!a}: {did_you_mean(word, ('data', *_SIDES))}")
    label = tree["data"]
    given = [side for side in _SIDES if tree.get(side) is not None]
    if not isinstance(label, str) or label not in OPERATORS:
        if given:
            raise _wrong(path, f"{excerpt(repr(label), 40)} is no operator: remove {given[0]}")
        return _leaf(label, path)
    wanted = list(_SIDES[: OPERATORS[label].arity])
    if given != wanted:
        raise _wrong(
            path, f"{label} needs {' and '.join(wanted)}, not {' and '.join(given) or 'none'}"
        )
    operands = [_read(tree[side], (*path, side), nodes) for side in wanted]
    try:
        return call(label, *operands)
    except PrunerZeroError as error:
        raise _wrong(path, str(error)) from None


def _leaf(label: object, path: tuple[str, ...]) -> Expression:
    if isinstance(label, str) and label in TERMINALS:
        return Terminal(label)
    try:
        if isinstance(label, str | int | float) and not isinstance(label, bool):
            return Constant(float(label))
    except (ValueError, OverflowError):
        pass
    except PrunerZeroError as error:
        raise _wrong(path, str(error)) from None
    word = excerpt(label, 40) if isinstance(label, str) else excerpt(repr(label), 40)
    raise _wrong(path, f"unknown label {word!a}: {did_you_mean(word, [*TERMINALS, *OPERATORS])}")


def _wrong(path: tuple[str, ...], problem: str) -> PrunerZeroError:
    return PrunerZeroError(f"{excerpt('.'.join(path)) or 'root'}: {problem}")
