"""Expressions as text: `abs(W * W) * mms(G)`, read and written without loss.

    sum     = product {("+" | "-") product}
    product = unary {("*" | "/") unary}
    unary   = "-" number | "-" unary | power          "-" number unless "^" follows
    power   = operand ["^" ["-"] number]
    operand = number | terminal | operator "(" sum {"," sum} ")" | "(" sum ")"

`+ - * / ^` and unary minus are the operators add, sub, mul, quotient, power and neg.
"""

import re
from dataclasses import dataclass

from pruner_zero.errors import PrunerZeroError, did_you_mean
from pruner_zero.metric.expression import (
    MAX_DEPTH,
    Call,
    Constant,
    Expression,
    Terminal,
    call,
)
from pruner_zero.metric.operators import ATOM, OPERATORS, POWER, SIGN, SUM
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


def excerpt(text: object, width: int = 80) -> str:
    """The text of an expression or a word, cut to fit into an error message."""
    line = str(text).replace("\n", "\\n")
    return line if len(line) <= width else line[: width - 1] + "…"


def _format(expression: Expression) -> tuple[str, int]:
    """The text and how tightly its outermost operator binds."""
    if not isinstance(expression, Call):
        if isinstance(expression, Constant):
            return repr(expression.value), ATOM if expression.value >= 0 else SIGN
        assert isinstance(expression, Terminal)
        return expression.name, ATOM
    name, operands = expression.operator.name, expression.operands
    if expression.operator.infix:
        symbol, level = expression.operator.infix
        # Equal levels group to the left, so only a right operand needs parentheses for them.
        return f"{_within(operands[0], level)} {symbol} {_within(operands[1], level + 1)}", level
    if name == "power":
        return f"{_within(operands[0], ATOM)}^{_format(operands[1])[0]}", POWER
    if name == "neg" and not isinstance(operands[0], Constant):
        return f"-{_within(operands[0], SIGN)}", SIGN
    return f"{name}({', '.join(_format(operand)[0] for operand in operands)})", ATOM


def _within(expression: Expression, level: int) -> str:
    text, binds = _format(expression)
    return text if binds >= level else f"({text})"


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str
    text: str
    column: int


def _tokens(text: str) -> list[_Token]:
    tokens, position = [], 0
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise ParseError(f"unexpected character {text[position]!a}", position + 1)
        kind = match.lastgroup or ""
        if kind != "space":
            tokens.append(_Token(kind, match.group(), position + 1))
        position = match.end()
    return [*tokens, _Token("end", "", len(text) + 1)]


class _Parser:
    """Precedence climbing over a list of tokens."""

    def __init__(self, tokens: list[_Token]) -> None:
        self.tokens = tokens
        self.position = 0
        self.nesting = 0

    def whole(self) -> Expression:
        expression = self.binary(SUM)
        if self.token.kind != "end":
            raise ParseError(f"expected an operator before {self.shown()}", self.token.column)
        return expression

    @property
    def token(self) -> _Token:
        return self.tokens[self.position]

    def take(self) -> _Token:
        token = self.token
        self.position += token.kind != "end"
        return token

    def shown(self) -> str:
        return f"'{excerpt(self.token.text, 40)}'" if self.token.text else "the end of the text"

    def expect(self, symbol: str, opening: _Token) -> None:
        if self.token.text != symbol:
            raise ParseError(
                f"expected '{symbol}' before {self.shown()} to close the '(' at column "
                f"{opening.column}",
                self.token.column,
            )
        self.take()

    def deeper(self, token: _Token) -> None:
        self.nesting += 1
        if self.nesting > MAX_DEPTH:
            raise ParseError(f"nested deeper than {MAX_DEPTH} levels", token.column)

    def call(self, name: str, column: int, *operands: Expression) -> Expression:
        try:
            return call(name, *operands)
        except PrunerZeroError as error:
            raise ParseError(str(error), column) from None

    def binary(self, minimum: int) -> Expression:
        left = self.unary()
        while self.token.text in _INFIX and _INFIX[self.token.text][1] >= minimum:
            token = self.take()
            name, level = _INFIX[token.text]
            left = self.call(name, token.column, left, self.binary(level + 1))
        return left

    def unary(self) -> Expression:
        if self.token.text != "-":
            return self.power()
        minus = self.take()
        # As in mathematics, -2^2 is minus the power: "^" binds tighter than the sign.
        if self.token.kind == "number" and self.tokens[self.position + 1].text != "^":
            return self.number(minus)
        self.deeper(minus)
        operand = self.unary()
        self.nesting -= 1
        return self.call("neg", minus.column, operand)

    def power(self) -> Expression:
        base = self.operand()
        if self.token.text != "^":
            return base
        column = self.take().column
        minus = self.take() if self.token.text == "-" else None
        if self.token.kind != "number":
            raise ParseError(
                f"the exponent of a power must be a number, not {self.shown()}", self.token.column
            )
        power = self.call("power", column, base, self.number(minus))
        if self.token.text == "^":
            raise ParseError("put the power before this '^' in parentheses", self.token.column)
        return power

    def number(self, minus: _Token | None) -> Expression:
        token = self.take()
        value = float(token.text)
        try:
            return Constant(-value if minus else value)
        except PrunerZeroError as error:
            raise ParseError(str(error), token.column) from None

    def operand(self) -> Expression:
        if self.token.kind == "number":
            return self.number(None)
        if self.token.kind == "name":
            return self.named()
        before = self.tokens[self.position - 1]
        if before.text == self.token.text == "*" and before.column == self.token.column - 1:
            raise ParseError("write ^ for a power, not **", before.column)
        if self.token.text != "(":
            raise ParseError(
                f"expected a terminal, a number or an operator before {self.shown()}",
                self.token.column,
            )
        opening = self.take()
        self.deeper(opening)
        expression = self.binary(SUM)
        self.expect(")", opening)
        self.nesting -= 1
        return expression

    def named(self) -> Expression:
        name = self.take()
        if self.token.text != "(":
            return self.terminal(name)
        if name.text in TERMINALS:
            raise ParseError(f"{name.text} is a terminal and takes no operands", name.column)
        if name.text not in OPERATORS:
            short = excerpt(name.text, 40)
            raise ParseError(
                f"unknown operator '{short}': {did_you_mean(short, OPERATORS)}", name.column
            )
        opening = self.take()
        self.deeper(opening)
        operands = []
        if self.token.text != ")":
            operands.append(self.binary(SUM))
            while self.token.text == ",":
                self.take()
                operands.append(self.binary(SUM))
        self.expect(")", opening)
        self.nesting -= 1
        return self.call(name.text, name.column, *operands)

    def terminal(self, name: _Token) -> Terminal:
        if name.text in TERMINALS:
            return Terminal(name.text)
        if name.text in OPERATORS:
            raise ParseError(
                f"{name.text} is an operator: put its operands in parentheses", name.column
            )
        short = excerpt(name.text, 40)
        known = [*TERMINALS, *OPERATORS]
        raise ParseError(f"unknown name '{short}': {did_you_mean(short, known)}", name.column)
