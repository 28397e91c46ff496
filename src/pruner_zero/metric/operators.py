"""The operators: what describes one, its numerics and its facts, and the built-in ones.

A new operator is one entry of `_PUBLISHED` or `_EXTENDED` and nothing else: simplification, text,
formulas, the search and the analysis read its facts here.
"""

import math
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, fields
from enum import Enum
from functools import partial
from types import MappingProxyType
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.linalg import vector_norm

Reach = Literal["element", "row", "column", "matrix"]
Family = Literal["power", "matrix rescaling", "row or column rescaling", "transcendental", "other"]

# How tightly notation binds, in text and in formulas.
SUM, PRODUCT, SIGN, POWER, ATOM = range(1, 6)


class Shape(Enum):
    """The form of a value that is broadcast to a weight matrix: varies over (outputs, inputs)."""

    MATRIX = (True, True)
    ROW = (False, True)
    COLUMN = (True, False)
    SCALAR = (False, False)

    def sizes(self, matrix: tuple[int, int]) -> tuple[int, int]:
        """The tensor shape of this form beside a weight `matrix` of shape (out, in)."""
        outputs, inputs = matrix
        return (outputs if self.value[0] else 1, inputs if self.value[1] else 1)


@dataclass(frozen=True, slots=True, eq=False)
class Operator:
    """One operator: its numerics and everything else the program has to know about it.

    All facts hold in exact arithmetic for finite results; fp32 rounding can still tie close
    values. A fact that is left out is not claimed, which is always safe. Facts that follow from
    `exponent`, `factor` and `rescaling` (degree, sign, parity, increasing) need not be repeated.

    name: as the language writes it, such as row_share.
    arity: number of operands, 1 or 2.
    apply: the numerics, a pure function of 2-D tensors to a 2-D tensor.
    meaning: the result for operands x and y, where no other fact states it.
    reach: over which entries of an operand, before it is broadcast, statistics are taken to
        compute one entry.
    shape_rule: the result has the broadcast shape of the operands, the first one's, or (1, 1).
    increasing: the result grows strictly with the first operand while the others keep their
        values, among entries that share the reach: always, where the operand is nonnegative,
        or never (not claimed). Not claimed where fp32 rounds the results for operands of up to
        1e6 to ties, as in exp and tanh.
    sign: the result is nonnegative, keeps the operands' sign (all nonnegative gives
        nonnegative), or any.
    degree: f(c·x, c·y) = c^degree · f(x, y) for every positive c constant over the reach.
    parity: f(-x) is -f(x) (odd) or f(x) (even).
    exponent: f(x) = |x|^exponent, or f(x, number) = |x|^number where it is "operand".
    factor: f(x) = factor · x.
    rescaling: f(x) = a·x, where a > 0 is taken over the magnitudes within the reach (scale), or
        f(x) = a·x + b, where a > 0 and b are taken over the reach (affine). A factor c > 0 that
        is constant over the reach makes no difference, nor does an offset where it is affine.
    ranks: f(x) depends on the order of x within the reach alone, and grows with it.
    commutative: f(x, y) = f(y, x).
    twins: f(x, x) is worth nothing: a constant, x, or a multiple of x.
    inverse: the name of an operator that undoes this one, as the paper's simplification sees it;
        one of the two has to state it.
    infix: the symbol between the operands, if any, and how tightly it binds. The text of an
        operator that is not built in is a call all the same.
    latex: the formula, and how tightly it binds; else the name with its operands in parentheses.
        #1 and #2 are the operands, (#1) gets parentheses where the operand binds less tightly,
        |#1| gets bars where the operand may be negative.
    """

    name: str
    arity: int
    apply: Callable[..., Tensor]
    meaning: str = ""
    _: KW_ONLY
    reach: Reach = "element"
    shape_rule: Literal["join", "first", "scalar"] = "join"
    increasing: Literal["always", "nonnegative", "never"] = "never"
    sign: Literal["nonnegative", "keeps", "any"] = "any"
    degree: float | None = None
    parity: Literal["odd", "even"] | None = None
    exponent: float | Literal["operand"] | None = None
    factor: float | None = None
    rescaling: Literal["scale", "affine"] | None = None
    ranks: bool = False
    commutative: bool = False
    twins: bool = False
    inverse: str | None = None
    infix: tuple[str, int] | None = None
    latex: tuple[str, int] | None = None

    def __post_init__(self) -> None:
        if isinstance(self.exponent, int | float):
            self._imply(degree=self.exponent, sign="nonnegative", parity="even")
            self._imply(increasing="nonnegative" if self.exponent > 0 else "never")
        if self.factor is not None:
            self._imply(degree=1.0, parity="odd")
            if self.factor > 0:
                self._imply(sign="keeps", increasing="always")
        if self.rescaling is not None or self.ranks:
            self._imply(degree=0.0, increasing="always")
        if self.rescaling == "scale":
            self._imply(sign="keeps", parity="odd")

    def _imply(self, **facts: object) -> None:
        for name, value in facts.items():
            object.__setattr__(self, name, value)

    @property
    def described(self) -> str:
        """The result for operands x and y, in words or as a formula."""
        if self.exponent is not None:
            power = "y" if self.exponent == "operand" else f"{self.exponent:g}"
            return f"|x|^{power}".removesuffix("^1")
        if self.factor is not None:
            return f"{self.factor:g} * x"
        if self.infix is not None:
            return f"x {self.infix[0]} y"
        return self.meaning or f"{self.name}({', '.join('xy'[: self.arity])})"

    @property
    def family(self) -> Family:
        """The family of the operator: operators that it makes little sense to nest."""
        if self.exponent not in (None, 1.0):
            return "power"
        if self.rescaling is not None or self.ranks:
            return "matrix rescaling" if self.reach == "matrix" else "row or column rescaling"
        curved = self.arity == 1 and self.reach == "element" and self.degree is None
        return "transcendental" if curved else "other"

    @property
    def expressions(self) -> int:
        """How many of the operands are expressions; an exponent is a number."""
        return self.arity - (self.exponent == "operand")

    def shape(self, *operands: Shape) -> Shape:
        """The form of the result for operands of these forms."""
        if self.shape_rule == "scalar":
            return Shape.SCALAR
        if self.shape_rule == "first":
            return operands[0]
        outputs, inputs = zip(*(operand.value for operand in operands), strict=True)
        return Shape((any(outputs), any(inputs)))

    def __reduce__(self) -> tuple[Callable[..., "Operator"], tuple[str, ...]]:
        # Operators compare by identity, so another process has to get its own built-in operator.
        if OPERATORS.get(self.name) is self:
            return _built_in, (self.name,)
        return partial(
            Operator, **{each.name: getattr(self, each.name) for each in fields(self)}
        ), ()


def _built_in(name: str) -> Operator:
    return OPERATORS[name]


_TINY = torch.finfo(torch.float32).tiny


def _min_max_scale(x: Tensor) -> Tensor:
    low, high = x.aminmax()
    return (x - low) / (high - low)


def _standardize(x: Tensor) -> Tensor:
    if x.numel() == 1:
        # torch.std of one entry is nan as well, but warns.
        return torch.full_like(x, math.nan)
    return (x - x.mean()) / x.std()


def _quotient(x: Tensor, y: Tensor) -> Tensor:
    guard = torch.where(y < 0, -_TINY, _TINY).to(y.dtype)
    return x / torch.where(y.abs() < _TINY, guard, y)


def _over(x: Tensor, total: Tensor) -> Tensor:
    # Where the total is zero all entries are zero: their share is 0, not nan.
    return x / total.masked_fill(total == 0, 1)


def _share(dim: int) -> Callable[[Tensor], Tensor]:
    return lambda x: _over(x, x.abs().sum(dim=dim, keepdim=True))


def _normalize(dim: int | None) -> Callable[[Tensor], Tensor]:
    return lambda x: _over(x, vector_norm(x, dim=dim, keepdim=True))


def _small(x: Tensor) -> Tensor:
    magnitude = x.abs()
    return (magnitude < 0.1 * magnitude.mean()).to(x.dtype).mean().reshape(1, 1)


def _row_odds(x: Tensor) -> Tensor:
    count = x.shape[1]
    ranks = torch.arange(count, dtype=torch.float64, device=x.device) + 0.5
    odds = (ranks / (count - ranks)).to(x.dtype).expand(x.shape)
    result = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    result.scatter_(1, _row_order(x), odds)
    return torch.where(x.isnan(), x, result)


def _row_order(x: Tensor) -> Tensor:
    """The columns of each row, those of the lowest values first, of equal values in their order.

    NumPy's vectorised sort takes a fifth of the time of torch's on a CPU, and is not stable.
    """
    if x.device.type != "cpu":
        return x.argsort(dim=1, stable=True)
    order = torch.from_numpy(np.argsort(x.numpy(), axis=1))
    ascending = x.gather(1, order)
    tied = (ascending[:, 1:] == ascending[:, :-1]).any(1)
    order[tied] = x[tied].argsort(dim=1, stable=True)
    return order


# fmt: off
# Numerics as released with Pruner-Zero (Dong 2024, arXiv 2406.02924).
_PUBLISHED = (
    Operator("sqr", 1, lambda x: x * x, exponent=2.0, inverse="sqrt", latex=("(#1)^{2}", POWER)),
    Operator("neg", 1, torch.neg, factor=-1.0, inverse="neg", latex=("-(#1)", SIGN)),
    Operator("abs", 1, torch.abs, exponent=1.0, latex=(r"\left|#1\right|", ATOM)),
    Operator("log", 1, lambda x: (x.abs() + 0.001).log(), "ln(|x| + 0.001)", parity="even",
             increasing="nonnegative", inverse="exp",
             latex=(r"\ln\left(|#1| + 0.001\right)", ATOM)),
    Operator("exp", 1, lambda x: x.clamp(max=100).exp(), "e^min(x, 100)", sign="nonnegative",
             latex=(r"e^{\min\left(#1, 100\right)}", POWER)),
    Operator("sqrt", 1, lambda x: x.abs().sqrt(), exponent=0.5, latex=(r"\sqrt{|#1|}", ATOM)),
    Operator("tanh", 1, torch.tanh, sign="keeps", parity="odd"),
    Operator("pow", 1, lambda x: x * x, exponent=2.0, inverse="sqrt", latex=("(#1)^{2}", POWER)),
    Operator("skp", 1, lambda x: x, factor=1.0),
    Operator("mms", 1, _min_max_scale, "(x - min) / (max - min) of the matrix", reach="matrix",
             sign="nonnegative", rescaling="affine"),
    Operator("zsn", 1, _standardize, "(x - mean) / standard deviation of the matrix",
             reach="matrix", parity="odd", rescaling="affine"),
    Operator("add", 2, torch.add, increasing="always", sign="keeps", degree=1, commutative=True,
             twins=True, infix=("+", SUM), latex=("(#1) + (#2)", SUM)),
    Operator("sub", 2, torch.sub, increasing="always", degree=1, twins=True, infix=("-", SUM),
             latex=("(#1) - (#2)", SUM)),
    Operator("mul", 2, torch.mul, sign="keeps", degree=2, commutative=True, infix=("*", PRODUCT),
             latex=(r"(#1) \cdot (#2)", PRODUCT)),
    Operator("div", 2, lambda x, y: x / vector_norm(y), "x / Frobenius norm of y", reach="matrix",
             shape_rule="first", increasing="always", sign="keeps", degree=0, twins=True,
             latex=(r"\frac{#1}{\left\lVert #2\right\rVert_F}", POWER)),
)

# Added by this project, so that every known metric can be written as an expression.
_EXTENDED = (
    Operator("quotient", 2, _quotient, sign="keeps", degree=0, twins=True, infix=("/", PRODUCT),
             latex=(r"\frac{#1}{#2}", POWER)),
    Operator("power", 2, lambda x, exponent: x.abs().pow(exponent), sign="nonnegative",
             exponent="operand", latex=("|(#1)|^{#2}", POWER)),
    Operator("min", 2, torch.minimum, sign="keeps", degree=1, commutative=True, twins=True),
    Operator("max", 2, torch.maximum, sign="keeps", degree=1, commutative=True, twins=True),
    Operator("row_share", 1, _share(1), "x / sum |x| of the row", reach="row", rescaling="scale"),
    Operator("column_share", 1, _share(0), "x / sum |x| of the column", reach="column",
             rescaling="scale"),
    Operator("row_normalize", 1, _normalize(1), "x / L2 norm of the row", reach="row",
             rescaling="scale"),
    Operator("column_normalize", 1, _normalize(0), "x / L2 norm of the column", reach="column",
             rescaling="scale"),
    Operator("matrix_normalize", 1, _normalize(None), "x / L2 norm of the matrix", reach="matrix",
             rescaling="scale"),
    Operator("row_odds", 1, _row_odds,
             "r / (1 - r) for the share r of entries below x in its row",
             reach="row", sign="nonnegative", ranks=True),
    Operator("small", 1, _small, "share of elements with |x| below a tenth of the mean |x|",
             reach="matrix", shape_rule="scalar", sign="nonnegative", degree=0, parity="even"),
)
# fmt: on

OPERATORS = MappingProxyType({each.name: each for each in _PUBLISHED + _EXTENDED})
PUBLISHED = tuple(each.name for each in _PUBLISHED)
