"""The space of a search: terminals, operators, limits and comparison groups."""

from collections.abc import Iterator, Mapping
from functools import cached_property

from pydantic import Field, ValidationInfo, field_validator

from pruner_zero.choices import Group
from pruner_zero.errors import PrunerZeroError, did_you_mean
from pruner_zero.metric.canonical.form import canonical
from pruner_zero.metric.canonical.skeleton import Skeleton
from pruner_zero.metric.expression import TERMINALS, Call, Expression, Terminal
from pruner_zero.metric.operators import OPERATORS, PUBLISHED, Family, Operator, Shape
from pruner_zero.settings.base import Settings

# Exponents of a new power. Variation moves them by `EXPONENT_STEP` within LOWEST … HIGHEST.
EXPONENTS = (0.25, 0.333, 0.5, 0.667, 0.75, 1.5, 2.0, 3.0)
EXPONENT_STEP, LOWEST, HIGHEST = 0.05, 0.1, 4.0


# How many operators of a family (`Operator.family`) a path from the root to a leaf may have.
_NESTED: Mapping[Family, int] = {
    "matrix rescaling": 1,
    "transcendental": 1,
    "row or column rescaling": 2,
}


class SearchSpace(Settings):
    """The expressions and comparison groups that a search may try.

    terminals, operators: names. scopes: the comparison groups. max_size: nodes. max_depth: levels.
    idle: allow nodes that change nothing, such as `abs` of a non-negative operand, and any nesting
    of operators of one family. Source: ours.
    """

    terminals: tuple[str, ...] = ("W", "G", "X", "O", "P")
    operators: tuple[str, ...] = (
        *("mul", "add", "sub", "quotient", "div", "min", "max"),
        *("power", "sqr", "sqrt", "log", "exp", "abs", "mms", "zsn"),
        *("row_share", "column_share", "row_normalize", "column_normalize", "matrix_normalize"),
        "row_odds",
    )
    scopes: tuple[Group, ...] = Field(("row", "block", "matrix", "global"), min_length=1)
    max_size: int = Field(23, ge=1, strict=True)
    max_depth: int = Field(8, ge=1, strict=True)
    idle: bool = False

    @field_validator("terminals", "operators", "scopes")
    @classmethod
    def _check_names(cls, names: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        tables: dict[str | None, Mapping[str, object]]
        tables = {"terminals": TERMINALS, "operators": OPERATORS}
        noun = str(info.field_name).removesuffix("s")
        table = tables.get(info.field_name, dict.fromkeys(names))
        for name in names:
            if name not in table:
                raise ValueError(f"unknown {noun} '{name}': {did_you_mean(name, table)}")
        if len(set(names)) < len(names):
            raise ValueError(f"a {noun} occurs twice: name each once")
        return names

    @field_validator("terminals")
    @classmethod
    def _some_matrix(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if not any(TERMINALS[name].shape is Shape.MATRIX for name in names):
            raise ValueError("no weight can be told from another without one of W, G, S")
        return names

    def allows(self, expression: Expression) -> bool:
        """Whether the space has this expression, which gives a score for each weight."""
        return (
            expression.shape is Shape.MATRIX
            and expression.size <= self.max_size
            and expression.depth <= self.max_depth
            and all(self._allows_node(node) for _, node in positions(expression))
            and (self.idle or all(_nested(expression, name) <= _NESTED[name] for name in _NESTED))
        )

    def _allows_node(self, node: Expression) -> bool:
        if not isinstance(node, Call):
            return isinstance(node, Terminal) and node.name in self.terminals
        exponent = node.exponent if node.operator.exponent == "operand" else None
        return (
            node.operator.name in self.operators
            and (exponent is None or _allows_exponent(exponent))
            and (self.idle or not _idle(node))
        )

    @cached_property
    def leaves(self) -> Mapping[Shape, tuple[str, ...]]:
        """The names of the terminals of each shape."""
        return {
            shape: tuple(name for name in self.terminals if TERMINALS[name].shape is shape)
            for shape in Shape
        }


def simplest(expression: Expression, scope: Group, space: SearchSpace) -> Expression:
    """The canonical form with exponents on the grid of the space.

    The expression itself where the space does not have that form, or it is larger.
    """
    skeleton = Skeleton(canonical(expression, scope), scope)
    exponents = [on_grid(exponent) or exponent for exponent in skeleton.exponents]
    try:
        form = skeleton.with_exponents(exponents)
    except PrunerZeroError:
        return expression
    return form if form.size <= expression.size and space.allows(form) else expression


def on_grid(exponent: float) -> float:
    """The nearest point of the exponents' grid."""
    return round(round(exponent / EXPONENT_STEP) * EXPONENT_STEP, 6)


def _allows_exponent(exponent: float) -> bool:
    """Whether it is listed, or lies on the grid inside the range."""
    return exponent in EXPONENTS or (
        LOWEST <= exponent <= HIGHEST and exponent == on_grid(exponent)
    )


def positions(expression: Expression) -> Iterator[tuple[int, Expression]]:
    """Every node with its preorder index, without the exponents of powers."""
    exponents: set[int] = set()
    for index, node in enumerate(expression.walk()):
        if index in exponents:
            continue
        if isinstance(node, Call) and node.operator.exponent == "operand":
            exponents.add(index + node.size - 1)
        yield index, node


def is_constant(operator: Operator, operands: tuple[Shape, ...]) -> bool:
    """Whether every entry of the result is the same for operands of these shapes."""
    if operator.reach == "element":
        return False
    down, along = operands[-1].value
    return not {"row": along, "column": down, "matrix": down or along}[operator.reach]


def _idle(node: Call) -> bool:
    """Whether the node changes nothing, or is a power of a power."""
    operator, operands = node.operator, node.operands
    return (
        is_constant(operator, tuple(operand.shape for operand in operands))
        or operator.factor == 1
        or (operator.exponent == 1 and operands[0].nonnegative)
        or (operator.twins and operands[0] == operands[-1])
        or _family(node) == "power" == _family(operands[0])
    )


def _nested(node: Expression, family: Family) -> int:
    """The most operators of the family on a path from the node to a leaf."""
    below = max((_nested(operand, family) for operand in node.operands), default=0)
    return below + (_family(node) == family)


def _family(node: Expression) -> Family | None:
    return node.operator.family if isinstance(node, Call) else None


# The released operators and terminals. Five levels are the paper's largest initial tree. It names
# no limit for children, but without a limit trees grow without end.
PUBLISHED_SPACE = SearchSpace(
    terminals=("W", "G", "X"),
    operators=PUBLISHED,
    scopes=("row",),
    max_size=31,
    max_depth=5,
    idle=True,
)
