"""Expressions from text, `abs(W * W) * mms(G)`, and as trees, `{"data": "mul", "left": …}`.

    sum     = product {("+" | "-") product}
    product = unary {("*" | "/") unary}
    unary   = "-" number | "-" unary | power          "-" number unless "^" follows
    power   = operand ["^" ["-"] number]
    operand = number | terminal | operator "(" sum {"," sum} ")" | "(" sum ")"

The infix symbols are those of the operators; `^` is power and unary minus is neg. Trees are the
nested JSON that Pruner-Zero released.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from itertools import count
from typing import Any

from pruner_zero.errors import PrunerZeroError, did_you_mean, excerpt
from pruner_zero.metric.expression import (
    INFIX,
    MAX_DEPTH,
    MAX_SIZE,
    TERMINALS,
    Call,
    Constant,
    Expression,
    Terminal,
    call,
)
from pruner_zero.metric.operators import OPERATORS, SUM

MAX_LENGTH = 100_000
_SIDES = ("left", "right")

_TOKEN = re.compile(
    r"(?P<number>(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)"
    r"|(?P<name>[A-Za-z_][A-Za-z0-9_]*)"
    r"|(?P<symbol>[-+*/^(),])"
    r"|(?P<unknown>\S)"
    r"|(?P<end>\Z)"
)


_Token = re.Match[str]


class ParseError(PrunerZeroError):
    """Text that is no expression: one line with the 1-based `column`."""

    def __init__(self, problem: str, column: int) -> None:
        super().__init__(problem, column)
        self.column = column

    def __str__(self) -> str:
        return f"column {self.column}: {self.args[0]}"


def parse(text: str) -> Expression:
    """Read an expression; `parse(str(e)) == e` for every expression.

    Raises ParseError for anything else, more than 100,000 characters and more than 100 levels.
    """
    if len(text) > MAX_LENGTH:
        raise ParseError(f"an expression can have at most {MAX_LENGTH} characters", MAX_LENGTH + 1)
    tokens = list(_TOKEN.finditer(text))
    for token in tokens:
        if token.lastgroup == "unknown":
            raise ParseError(f"unexpected character {token[0]!a}", _column(token))
    return _Parser(tokens).whole()


def _column(token: _Token) -> int:
    return token.start() + 1


class _Parser:
    """Precedence climbing over a list of tokens: a method for each rule of the grammar."""

    def __init__(self, tokens: list[_Token]) -> None:
        self.tokens = tokens
        self.position = 0
        self.nesting = 0

    @property
    def token(self) -> _Token:
        return self.tokens[self.position]

    def take(self) -> _Token:
        token = self.token
        self.position += token.lastgroup != "end"
        return token

    def shown(self) -> str:
        return f"'{excerpt(self.token[0], 40)}'" if self.token[0] else "the end of the text"

    def expected(self, what: str, why: str = "") -> ParseError:
        return ParseError(f"expected {what} before {self.shown()}{why}", _column(self.token))

    def nested(self, token: _Token, rule: Callable[[], Expression]) -> Expression:
        """What `rule` reads one level deeper, after the opening `token`."""
        self.nesting += 1
        if self.nesting > MAX_DEPTH:
            raise ParseError(f"nested deeper than {MAX_DEPTH} levels", _column(token))
        expression = rule()
        self.nesting -= 1
        return expression

    def build(self, name: str, column: int, *operands: Expression) -> Expression:
        try:
            return call(name, *operands)
        except PrunerZeroError as error:
            raise ParseError(str(error), column) from None

    def whole(self) -> Expression:
        expression = self.sum()
        if self.token.lastgroup != "end":
            raise self.expected("an operator")
        return expression

    def sum(self, minimum: int = SUM) -> Expression:
        """Operands joined by infix symbols that bind at least as tightly as `minimum`."""
        left = self.unary()
        while self.token[0] in INFIX and INFIX[self.token[0]][1] >= minimum:
            token = self.take()
            name, level = INFIX[token[0]]
            left = self.build(name, _column(token), left, self.sum(level + 1))
        return left

    def unary(self) -> Expression:
        if self.token[0] != "-":
            return self.power()
        minus = self.take()
        # As in mathematics, -2^2 is minus the power: "^" binds tighter than the sign.
        if self.token.lastgroup == "number" and self.tokens[self.position + 1][0] != "^":
            return self.number(negative=True)
        return self.build("neg", _column(minus), self.nested(minus, self.unary))

    def power(self) -> Expression:
        base = self.operand()
        if self.token[0] != "^":
            return base
        column = _column(self.take())
        if negative := self.token[0] == "-":
            self.take()
        if self.token.lastgroup != "number":
            raise ParseError(
                f"the exponent of a power must be a number, not {self.shown()}", _column(self.token)
            )
        power = self.build("power", column, base, self.number(negative))
        if self.token[0] == "^":
            raise ParseError("put the power before this '^' in parentheses", _column(self.token))
        return power

    def number(self, negative: bool = False) -> Expression:
        token = self.take()
        value = float(token[0])
        try:
            return Constant(-value if negative else value)
        except PrunerZeroError as error:
            raise ParseError(str(error), _column(token)) from None

    def operand(self) -> Expression:
        token = self.token
        if token.lastgroup == "number":
            return self.number()
        if token.lastgroup == "name":
            return self.named(self.take())
        before = self.tokens[self.position - 1]
        if before[0] == token[0] == "*" and _column(before) == _column(token) - 1:
            raise ParseError("write ^ for a power, not **", _column(before))
        if token[0] != "(":
            raise self.expected("a terminal, a number or an operator")
        expression = self.nested(self.take(), self.sum)
        self.close(token)
        return expression

    def close(self, opening: _Token) -> None:
        if self.token[0] != ")":
            raise self.expected("')'", f" to close the '(' at column {_column(opening)}")
        self.take()

    def named(self, name: _Token) -> Expression:
        """A terminal, or an operator with its operands."""
        word, called = excerpt(name[0], 40), self.token[0] == "("
        if name[0] in TERMINALS:
            if called:
                raise ParseError(f"{word} is a terminal and takes no operands", _column(name))
            return Terminal(name[0])
        if name[0] not in OPERATORS:
            kind, names = ("operator", OPERATORS) if called else ("name", [*TERMINALS, *OPERATORS])
            raise ParseError(f"unknown {kind} '{word}': {did_you_mean(word, names)}", _column(name))
        if not called:
            raise ParseError(
                f"{word} is an operator: put its operands in parentheses", _column(name)
            )
        opening, operands = self.take(), []
        if self.token[0] != ")":
            operands.append(self.nested(opening, self.sum))
        while operands and self.token[0] == ",":
            self.take()
            operands.append(self.nested(opening, self.sum))
        self.close(opening)
        return self.build(name[0], _column(name), *operands)


def to_tree(expression: Expression) -> dict[str, Any]:
    """The nested form: an operator with left (and right), a terminal's name, or a number."""
    if isinstance(expression, Call):
        operands = map(to_tree, expression.operands)
        return {"data": expression.operator.name, **dict(zip(_SIDES, operands, strict=False))}
    assert isinstance(expression, Terminal | Constant)
    return {"data": expression.name if isinstance(expression, Terminal) else expression.value}


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
    given = tuple(side for side in _SIDES if tree.get(side) is not None)
    if not isinstance(label, str) or label not in OPERATORS:
        if given:
            raise _wrong(path, f"{excerpt(repr(label), 40)} is no operator: remove {given[0]}")
        return _leaf(label, path)
    wanted = _SIDES[: OPERATORS[label].arity]
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
