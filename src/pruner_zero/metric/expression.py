"""A pruning metric as an immutable tree of terminals, constants and operator calls."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from markupsafe import Markup

from pruner_zero.errors import PrunerZeroError, did_you_mean, excerpt
from pruner_zero.metric.latex import Formula, applied, number, to_mathml
from pruner_zero.metric.operators import ATOM, OPERATORS, POWER, SIGN, Operator, Shape
from pruner_zero.table import element

MAX_DEPTH = 100
MAX_SIZE = 10_000


@dataclass(frozen=True, slots=True)
class Statistic:
    """The statistic that a terminal stands for.

    shape: its form beside a weight matrix of shape (out, in).
    sign: positive (never zero), nonnegative, or any.
    cost: what collecting it costs, in nodes of an expression, for the complexity of a metric.
    magnitude: the terminal that is its magnitude, if it can be negative.
    collected: the statistic that calibration collects for it, None where the weight gives it. A
        statistic of the terminal's name is its value.
    """

    shape: Shape
    meaning: str
    sign: Literal["positive", "nonnegative", "any"] = "nonnegative"
    cost: int = 0
    magnitude: str | None = None
    collected: str | None = None


TERMINALS: Mapping[str, Statistic] = MappingProxyType(
    {
        "W": Statistic(Shape.MATRIX, "absolute weight"),
        "G": Statistic(
            Shape.MATRIX,
            "sqrt(Σ_n (100·g_n)²) over calibration windows n, g_n the gradient of the mean "
            "next-token loss",
            cost=3,
            collected="G",
        ),
        "X": Statistic(
            Shape.ROW,
            "L2 norm of each input channel: sqrt(mean over samples of Σ_tokens x²)",
            cost=1,
            collected="X",
        ),
        "O": Statistic(
            Shape.COLUMN,
            "root mean squared gradient at each output channel: sqrt(n · mean over the tokens of n "
            "calibration windows of (100·d)²), d the gradient of the window's mean next-token loss "
            "at a token's output, so that O * X is the Kronecker-factored estimate of G; of the "
            "first windows, which hold 8,192 tokens",
            cost=2,
            collected="O",
        ),
        "F": Statistic(
            Shape.ROW,
            "Fisher price of each input channel in nats per token: half of the mean over tokens of "
            "s², s the input times the gradient of the loss there, labels drawn from the model's "
            "predictions; inputs that only go together, such as those of a key-value head, share "
            "the price of their sum equally",
            cost=2,
            collected="F",
        ),
        "P": Statistic(
            Shape.SCALAR,
            "price of zeros in the matrix, in nats per token and weight: half of the square of the "
            "mean over tokens of |d · y|, y what the output lacks without the half of each row "
            "that has the lowest W * X, d the gradient of the loss there; of the first windows, "
            "which hold 8,192 tokens",
            cost=2,
            collected="P",
        ),
        "D": Statistic(
            Shape.ROW,
            "diagonal U_jj of the upper Cholesky factor of the inverse of the damped Hessian "
            "2XᵀX/n, so that sqr(W) / sqr(D) is SparseGPT's score",
            sign="positive",
            cost=2,
            collected="gram",
        ),
        "S": Statistic(Shape.MATRIX, "signed weight", sign="any", magnitude="W"),
    }
)


def collected_for(names: Iterable[str]) -> frozenset[str]:
    """The statistics that calibration has to collect for the terminals of these names."""
    collected = {TERMINALS[name].collected for name in names}
    return frozenset(statistic for statistic in collected if statistic is not None)


_Method = Callable[["Expression", "Expression | float"], "Expression"]


def _infix(name: str) -> tuple["_Method", "_Method"]:
    """The methods of a Python operator: with the expression on its left, and on its right."""
    return (
        lambda left, right: call(name, left, _lift(right)),
        lambda right, left: call(name, _lift(left), right),
    )


class Expression:
    """A node of a tree with everything below it: immutable, hashable, compared by structure.

    size: in nodes. depth: in levels, 1 for a leaf. terminals: their names. nonnegative: known never
    to be negative. Raises PrunerZeroError for more than 100 levels or 10,000 nodes.
    """

    __slots__ = ("_hash", "_key", "depth", "nonnegative", "operands", "shape", "size", "terminals")

    _hash: int
    _key: tuple[Any, ...]
    depth: int
    nonnegative: bool
    operands: tuple["Expression", ...]
    shape: Shape
    size: int
    terminals: frozenset[str]

    def walk(self) -> Iterator["Expression"]:
        """Every node in preorder; positions in it are the indices of `replace`."""
        pending: list[Expression] = [self]
        while pending:
            node = pending.pop()
            yield node
            pending.extend(reversed(node.operands))

    def replace(self, index: int, subtree: "Expression") -> "Expression":
        """This tree with the node at preorder `index` replaced; the rest is shared.

        Raises IndexError outside 0 … size − 1, PrunerZeroError where the result breaks a limit
        or a power would lose its constant exponent.
        """
        if not 0 <= index < self.size:
            raise IndexError(f"node {index} of an expression of {self.size} nodes")
        if index == 0:
            return subtree
        assert isinstance(self, Call)
        operands, within = list(self.operands), index - 1
        for position, operand in enumerate(operands):
            if within < operand.size:
                operands[position] = operand.replace(within, subtree)
                break
            within -= operand.size
        return Call(self.operator, tuple(operands))

    def leaf_counts(self) -> Counter[str]:
        """How often each leaf occurs, by its text: terminal names and constants."""
        return Counter(str(node) for node in self.walk() if not node.operands)

    def operator_counts(self) -> Counter[str]:
        """How often each operator occurs, by its name."""
        return Counter(node.operator.name for node in self.walk() if isinstance(node, Call))

    def meanings(self) -> dict[str, str]:
        """What each terminal and function in its text means: {"W": …, "mms": …}."""
        text = str(self)
        used = (node.operator for node in self.walk() if isinstance(node, Call))
        functions = {each.name: each.described for each in used if f"{each.name}(" in text}
        letters = {name: each.meaning for name, each in TERMINALS.items() if name in self.terminals}
        return letters | functions

    def _remember(
        self,
        label: str | float | Operator,
        operands: tuple["Expression", ...] = (),
        *,
        nonnegative: bool,
        shape: Shape,
        terminals: frozenset[str] = frozenset(),
    ) -> None:
        """Keep what is known of a node, whose constructor takes `label` and the operands."""
        depth = 1 + max((operand.depth for operand in operands), default=0)
        size = 1 + sum(operand.size for operand in operands)
        if depth > MAX_DEPTH:
            raise PrunerZeroError(f"an expression can have at most {MAX_DEPTH} levels: shorten it")
        if size > MAX_SIZE:
            raise PrunerZeroError(f"an expression can have at most {MAX_SIZE} nodes: shorten it")
        # The hash of an operator is its address, which differs between runs.
        name = label.name if isinstance(label, Operator) else label
        known = terminals.union(*(operand.terminals for operand in operands))
        key = (label, operands) if operands else (label,)
        values = (hash((name, operands)), key, depth, nonnegative, operands, shape, size, known)
        for fact, value in zip(Expression.__slots__, values, strict=True):
            object.__setattr__(self, fact, value)

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if type(self) is not type(other):
            return NotImplemented
        assert isinstance(other, Expression)
        return self._hash == other._hash and self._key == other._key

    def __hash__(self) -> int:
        return self._hash

    def __reduce__(self) -> tuple[type["Expression"], tuple[Any, ...]]:
        # Hashes of strings differ between processes: build the node again, with its own hash.
        return type(self), self._key

    def __str__(self) -> str:
        """The text with the fewest parentheses that keep the exact tree; `parse` reads it."""
        return _text(self)[0]

    def __repr__(self) -> str:
        return f"parse({str(self)!r})"

    @property
    def latex(self) -> str:
        """The expression in maths mode, without dollar signs."""
        return _formula(self).latex

    def _repr_html_(self) -> Markup:
        formula = element("div", to_mathml(self.latex, "inline"))
        return element("div", formula, element("code", excerpt(self, 200)))

    __add__, __radd__ = _infix("add")
    __sub__, __rsub__ = _infix("sub")
    __mul__, __rmul__ = _infix("mul")
    __truediv__, __rtruediv__ = _infix("quotient")

    def __pow__(self, exponent: float) -> "Expression":
        return call("power", self, Constant(exponent))

    def __neg__(self) -> "Expression":
        return call("neg", self)


@dataclass(frozen=True, eq=False, repr=False)
class Terminal(Expression):
    """A statistic of one weight matrix, in fp32.

    name: one of TERMINALS, which says what each stands for and what shape it has.
    Raises PrunerZeroError for any other name.
    """

    __slots__ = ("name",)

    name: str

    def __post_init__(self) -> None:
        name, statistic = self.name, TERMINALS.get(self.name)
        if statistic is None:
            raise PrunerZeroError(f"unknown terminal '{name}': {did_you_mean(name, TERMINALS)}")
        signed, names = statistic.sign == "any", frozenset((name,))
        self._remember(name, nonnegative=not signed, shape=statistic.shape, terminals=names)


@dataclass(frozen=True, eq=False, repr=False)
class Constant(Expression):
    """A finite number, a SCALAR. Raises PrunerZeroError for nan and infinities."""

    __slots__ = ("value",)

    value: float

    def __post_init__(self) -> None:
        try:
            # Adding 0.0 turns -0.0 into 0.0: the two are equal and would print differently.
            value = float(self.value) + 0.0
        except OverflowError:
            value = math.inf
        if not math.isfinite(value):
            raise PrunerZeroError(f"a constant must be a finite number, not {value}")
        object.__setattr__(self, "value", value)
        self._remember(value, nonnegative=value >= 0, shape=Shape.SCALAR)


@dataclass(frozen=True, eq=False, repr=False)
class Call(Expression):
    """An operator applied to its operands.

    Raises PrunerZeroError for a wrong number of operands, a power whose exponent is no
    Constant, and trees beyond the limits.
    """

    __slots__ = ("operator",)

    operator: Operator
    operands: tuple[Expression, ...]

    def __post_init__(self) -> None:
        operator, operands = self.operator, self.operands
        if len(operands) != operator.arity:
            wanted = f"{operator.arity} operand{'s' if operator.arity > 1 else ''}"
            raise PrunerZeroError(f"{operator.name} takes {wanted}, not {len(operands)}")
        if operator.exponent == "operand" and not isinstance(operands[-1], Constant):
            raise PrunerZeroError("the exponent of a power must be a number")
        kept = operator.sign == "keeps" and all(operand.nonnegative for operand in operands)
        shape = operator.shape(*(operand.shape for operand in operands))
        nonnegative = kept or operator.sign == "nonnegative"
        self._remember(operator, operands, nonnegative=nonnegative, shape=shape)

    @property
    def exponent(self) -> float | None:
        """The exponent where this is |x|^exponent, else None."""
        exponent = self.operator.exponent
        if exponent != "operand":
            return exponent
        number = self.operands[-1]
        assert isinstance(number, Constant)
        return number.value


def call(name: str, *operands: Expression) -> Call:
    """The operator of that name applied to the operands. Raises PrunerZeroError as Call does."""
    if name not in OPERATORS:
        raise PrunerZeroError(f"unknown operator '{name}': {did_you_mean(name, OPERATORS)}")
    return Call(OPERATORS[name], operands)


def _lift(value: Expression | float) -> Expression:
    return value if isinstance(value, Expression) else Constant(value)


# The operator of each infix symbol, and how tightly it binds.
INFIX = {each.infix[0]: (each.name, each.infix[1]) for each in OPERATORS.values() if each.infix}


def _text(expression: Expression) -> tuple[str, int]:
    """The text and how tightly its outermost operator binds."""
    if isinstance(expression, Constant):
        return repr(expression.value), ATOM if expression.value >= 0 else SIGN
    if isinstance(expression, Terminal):
        return expression.name, ATOM
    assert isinstance(expression, Call)
    operator, operands = expression.operator, expression.operands
    symbol, level = operator.infix or ("", 0)
    if INFIX.get(symbol) == (operator.name, level):
        # Equal levels group to the left, so only a right operand needs parentheses for them.
        return f"{_within(operands[0], level)} {symbol} {_within(operands[1], level + 1)}", level
    if operator.exponent == "operand":
        return f"{_within(operands[0], ATOM)}^{operands[1]}", POWER
    if operator.name == "neg" and not isinstance(operands[0], Constant):
        return f"-{_within(operands[0], SIGN)}", SIGN
    return f"{operator.name}({', '.join(map(str, operands))})", ATOM


def _within(expression: Expression, level: int) -> str:
    text, binds = _text(expression)
    return text if binds >= level else f"({text})"


def _formula(expression: Expression) -> Formula:
    if isinstance(expression, Constant):
        return number(expression.value)
    if isinstance(expression, Call):
        operands = [_formula(operand) for operand in expression.operands]
        return applied(expression.operator, operands, expression.nonnegative)
    return Formula(str(expression), ATOM, expression.nonnegative)
