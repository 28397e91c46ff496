"""Expressions as text: `abs(W * W) * mms(G)`, read and written without loss.

    sum     = product {("+" | "-") product}
    product = unary {("*" | "/") unary}
    unary   = "-" number | "-" unary | power          "-" number unless "^" follows
    power   = operand ["^" ["-"] number]
    operand = number | terminal | operator "(" sum {"," sum} ")" | "(" sum ")"

The infix symbols are those of the operators; `^` is power and unary minus is neg.
"""

import re
from collections.abc import Callable
from typing import NamedTuple

from pruner_zero.errors import PrunerZeroError, did_you_mean, excerpt
from pruner_zero.metric.expression import MAX_DEPTH, Call, Constant, Expression, Terminal, call
from pruner_zero.metric.operator import ATOM, POWER, SIGN, SUM
from pruner_zero.metric.operators import OPERATORS
from pruner_zero.metric.terminals import TERMINALS

MAX_LENGTH = 100_000

# The operator of each infix symbol, and how tightly it binds.
_INFIX = {
    operator.infix[0]: (operator.name, operator.infix[1])
    for operator in OPERATORS.values()
    if operator.infix
}

_TOKEN = re.compile(
    r"(?P<number>(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)"
    r"|(?P<name>[A-Za-z_][A-Za-z0-9_]*)"
    r"|(?P<symbol>[-+*/^(),])"
    r"|(?P<space>\s+)"
)


class ParseError(PrunerZeroError):
    """Text that is no expression: one line with the 1-based `column` and the `problem`."""

    def __init__(self, problem: str, column: int) -> None:
        super().__init__(problem, column)
        self.problem = problem
        self.column = column

    def __str__(self) -> str:
        return f"column {self.column}: {self.problem}"


def parse(text: str) -> Expression:
    """Read an expression; `parse(format(e)) == e` for every expression.

    Raises ParseError for anything else, for more than 100,000 characters and for nesting
    beyond 100 levels.
    """
    if len(text) > MAX_LENGTH:
        raise ParseError(f"an expression can have at most {MAX_LENGTH} characters", MAX_LENGTH + 1)
    return _Parser(_tokens(text)).whole()


def format(expression: Expression) -> str:
    """Write an expression with the fewest parentheses that keep its exact tree."""
    return _format(expression)[0]


def _format(expression: Expression) -> tuple[str, int]:
    """The text and how tightly its outermost operator binds."""
    if isinstance(expression, Constant):
        return repr(expression.value), ATOM if expression.value >= 0 else SIGN
    if isinstance(expression, Terminal):
        return expression.name, ATOM
    assert isinstance(expression, Call)
    operator, operands = expression.operator, expression.operands
    symbol, level = operator.infix or ("", 0)
    # The grammar knows no symbol of an operator of another package.
    if _INFIX.get(symbol) == (operator.name, level):
        # Equal levels group to the left, so only a right operand needs parentheses for them.
        return f"{_within(operands[0], level)} {symbol} {_within(operands[1], level + 1)}", level
    if operator.exponent == "operand":
        return f"{_within(operands[0], ATOM)}^{_format(operands[1])[0]}", POWER
    if operator.name == "neg" and not isinstance(operands[0], Constant):
        return f"-{_within(operands[0], SIGN)}", SIGN
    return f"{operator.name}({', '.join(map(format, operands))})", ATOM


def _within(expression: Expression, level: int) -> str:
    text, binds = _format(expression)
    return text if binds >= level else f"({text})"


class _Token(NamedTuple):
    kind: str
    text: str
    column: int


def _tokens(text: str) -> list[_Token]:
    tokens, position = [], 0
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise ParseError(f"unexpected character {text[position]!a}", position + 1)
        if match.lastgroup != "space":
            tokens.append(_Token(match.lastgroup or "", match.group(), position + 1))
        position = match.end()
    return [*tokens, _Token("end", "", len(text) + 1)]


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
        self.position += token.kind != "end"
        return token

    def shown(self) -> str:
        return f"'{excerpt(self.token.text, 40)}'" if self.token.text else "the end of the text"

    def nested(self, token: _Token, rule: Callable[[], Expression]) -> Expression:
        """What `rule` reads one level deeper, after the opening `token`."""
        self.nesting += 1
        if self.nesting > MAX_DEPTH:
            raise ParseError(f"nested deeper than {MAX_DEPTH} levels", token.column)
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
        if self.token.kind != "end":
            raise ParseError(f"expected an operator before {self.shown()}", self.token.column)
        return expression

    def sum(self, minimum: int = SUM) -> Expression:
        """Operands joined by infix symbols that bind at least as tightly as `minimum`."""
        left = self.unary()
        while self.token.text in _INFIX and _INFIX[self.token.text][1] >= minimum:
            token = self.take()
            name, level = _INFIX[token.text]
            left = self.build(name, token.column, left, self.sum(level + 1))
        return left

    def unary(self) -> Expression:
        if self.token.text != "-":
            return self.power()
        minus = self.take()
        # As in mathematics, -2^2 is minus the power: "^" binds tighter than the sign.
        if self.token.kind == "number" and self.tokens[self.position + 1].text != "^":
            return self.number(negative=True)
        return self.build("neg", minus.column, self.nested(minus, self.unary))

    def power(self) -> Expression:
        base = self.operand()
        if self.token.text != "^":
            return base
        column = self.take().column
        negative = self.token.text == "-"
        if negative:
            self.take()
        if self.token.kind != "number":
            raise ParseError(
                f"the exponent of a power must be a number, not {self.shown()}", self.token.column
            )
        power = self.build("power", column, base, self.number(negative))
        if self.token.text == "^":
            raise ParseError("put the power before this '^' in parentheses", self.token.column)
        return power

    def number(self, negative: bool = False) -> Expression:
        token = self.take()
        value = float(token.text)
        try:
            return Constant(-value if negative else value)
        except PrunerZeroError as error:
            raise ParseError(str(error), token.column) from None

    def operand(self) -> Expression:
        token = self.token
        if token.kind == "number":
            return self.number()
        if token.kind == "name":
            return self.named(self.take())
        before = self.tokens[self.position - 1]
        if before.text == token.text == "*" and before.column == token.column - 1:
            raise ParseError("write ^ for a power, not **", before.column)
        if token.text != "(":
            raise ParseError(
                f"expected a terminal, a number or an operator before {self.shown()}", token.column
            )
        expression = self.nested(self.take(), self.sum)
        self.close(token)
        return expression

    def close(self, opening: _Token) -> None:
        if self.token.text != ")":
            raise ParseError(
                f"expected ')' before {self.shown()} to close the '(' at column {opening.column}",
                self.token.column,
            )
        self.take()

    def named(self, name: _Token) -> Expression:
        """A terminal, or an operator with its operands."""
        word, called = excerpt(name.text, 40), self.token.text == "("
        if name.text in TERMINALS:
            if called:
                raise ParseError(f"{word} is a terminal and takes no operands", name.column)
            return Terminal(name.text)
        if name.text not in OPERATORS:
            kind, names = ("operator", OPERATORS) if called else ("name", [*TERMINALS, *OPERATORS])
            raise ParseError(f"unknown {kind} '{word}': {did_you_mean(word, names)}", name.column)
        if not called:
            raise ParseError(f"{word} is an operator: put its operands in parentheses", name.column)
        opening, operands = self.take(), []
        if self.token.text != ")":
            operands.append(self.nested(opening, self.sum))
        while operands and self.token.text == ",":
            self.take()
            operands.append(self.nested(opening, self.sum))
        self.close(opening)
        return self.build(name.text, name.column, *operands)
