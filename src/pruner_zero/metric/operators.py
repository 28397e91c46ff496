"""What an expression can do with tensors: the operators, their numerics and their facts."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Literal

import torch
from torch import Tensor

from pruner_zero.plugins import Registry

Reach = Literal["element", "row", "column", "matrix"]
Increasing = Literal["always", "nonnegative", "never"]
Sign = Literal["nonnegative", "keeps", "any"]

_TINY = torch.finfo(torch.float32).tiny


class Shape(Enum):
    """The form of a value beside a weight matrix: does it vary over (outputs, inputs)?"""

    MATRIX = (True, True)
    ROW = (False, True)
    COLUMN = (True, False)
    SCALAR = (False, False)

    def join(self, other: "Shape") -> "Shape":
        """The form of two broadcast values together."""
        return Shape((self.value[0] or other.value[0], self.value[1] or other.value[1]))

    def sizes(self, matrix: tuple[int, int]) -> tuple[int, int]:
        """The tensor shape of this form beside a weight `matrix` of shape (out, in)."""
        outputs, inputs = matrix
        return (outputs if self.value[0] else 1, inputs if self.value[1] else 1)


@dataclass(frozen=True, slots=True, eq=False)
class Operator:
    """One operator: its numerics `apply` (2-D tensors to a 2-D tensor) and its facts.

    Statistics are taken over the operand's own tensor, before it is broadcast. The facts hold
    in exact arithmetic for finite results; fp32 rounding can still tie close values.

    reach: over which entries statistics are taken to compute one entry.
    increasing: the result grows strictly with the first operand while the others keep their
        values, among entries that share the reach: always, where the operand is nonnegative,
        or never (not claimed).
    sign: the result is nonnegative, keeps the operands' sign (all nonnegative gives
        nonnegative), or any.
    degree: f(c·x, c·y) = c^degree · f(x, y) for every positive c constant over the reach.
    saturates: the operand from which `increasing` ends: exp's clamp, fp32 tanh's 1.
    """

    name: str
    arity: int
    apply: Callable[..., Tensor]
    reach: Reach
    increasing: Increasing
    sign: Sign
    degree: float | None
    group: Literal["published", "extended"] = "published"
    shape_rule: Literal["join", "first", "scalar"] = "join"
    saturates: float = math.inf

    def shape(self, *operands: Shape) -> Shape:
        """The form of the result for operands of these forms."""
        if self.shape_rule == "scalar":
            return Shape.SCALAR
        if self.shape_rule == "first" or len(operands) == 1:
            return operands[0]
        return operands[0].join(operands[1])

    def __reduce__(self) -> tuple[Callable[[str], "Operator"], tuple[str]]:
        # Operators compare by identity, which must survive the way to another process.
        return _registered, (self.name,)


def _registered(name: str) -> Operator:
    return OPERATORS[name]


def _square(x: Tensor) -> Tensor:
    return x * x


def _identity(x: Tensor) -> Tensor:
    return x


def _log(x: Tensor) -> Tensor:
    return (x.abs() + 0.001).log()


def _exp(x: Tensor) -> Tensor:
    return x.clamp(max=100).exp()


def _sqrt(x: Tensor) -> Tensor:
    return x.abs().sqrt()


def _min_max_scale(x: Tensor) -> Tensor:
    low, high = x.aminmax()
    return (x - low) / (high - low)


def _standardize(x: Tensor) -> Tensor:
    if x.numel() == 1:
        # The same nan as torch.std of one entry, without its warning.
        return torch.full_like(x, math.nan)
    return (x - x.mean()) / x.std()


def _divide_by_norm(x: Tensor, y: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(y)
    return x / norm


def _quotient(x: Tensor, y: Tensor) -> Tensor:
    guard = torch.where(y < 0, -_TINY, _TINY).to(y.dtype)
    return x / torch.where(y.abs() < _TINY, guard, y)


def _power(x: Tensor, exponent: Tensor) -> Tensor:
    return x.abs().pow(exponent)


def _over(x: Tensor, total: Tensor) -> Tensor:
    # A total of zero means that all its entries are zero: their share is 0, not nan.
    return x / total.masked_fill(total == 0, 1)


def _row_share(x: Tensor) -> Tensor:
    return _over(x, x.abs().sum(dim=1, keepdim=True))


def _column_share(x: Tensor) -> Tensor:
    return _over(x, x.abs().sum(dim=0, keepdim=True))


def _row_normalize(x: Tensor) -> Tensor:
    return _over(x, torch.linalg.vector_norm(x, dim=1, keepdim=True))


def _column_normalize(x: Tensor) -> Tensor:
    return _over(x, torch.linalg.vector_norm(x, dim=0, keepdim=True))


def _small(x: Tensor) -> Tensor:
    magnitude = x.abs()
    return (magnitude < 0.1 * magnitude.mean()).to(x.dtype).mean().reshape(1, 1)


_ALL = (
    # Numerics as released with Pruner-Zero (Dong 2024, arXiv 2406.02924):
    # name, arity, apply, reach, increasing, sign, degree
    Operator("sqr", 1, _square, "element", "nonnegative", "nonnegative", 2),
    Operator("neg", 1, torch.neg, "element", "never", "any", 1),
    Operator("abs", 1, torch.abs, "element", "nonnegative", "nonnegative", 1),
    Operator("log", 1, _log, "element", "nonnegative", "any", None),
    Operator("exp", 1, _exp, "element", "always", "nonnegative", None, saturates=100.0),
    Operator("sqrt", 1, _sqrt, "element", "nonnegative", "nonnegative", 0.5),
    Operator("tanh", 1, torch.tanh, "element", "always", "keeps", None, saturates=9.0),
    Operator("pow", 1, _square, "element", "nonnegative", "nonnegative", 2),
    Operator("skp", 1, _identity, "element", "always", "keeps", 1),
    Operator("mms", 1, _min_max_scale, "matrix", "always", "nonnegative", 0),
    Operator("zsn", 1, _standardize, "matrix", "always", "any", 0),
    Operator("add", 2, torch.add, "element", "always", "keeps", 1),
    Operator("sub", 2, torch.sub, "element", "always", "any", 1),
    Operator("mul", 2, torch.mul, "element", "never", "keeps", 2),
    Operator("div", 2, _divide_by_norm, "matrix", "always", "keeps", 0, shape_rule="first"),
    # Ours, so that every known metric is an expression:
    Operator("quotient", 2, _quotient, "element", "never", "keeps", 0, "extended"),
    # The facts of a power hang on its exponent: Call.increasing and Call.degree know them.
    Operator("power", 2, _power, "element", "never", "nonnegative", None, "extended"),
    Operator("min", 2, torch.minimum, "element", "never", "keeps", 1, "extended"),
    Operator("max", 2, torch.maximum, "element", "never", "keeps", 1, "extended"),
    Operator("row_share", 1, _row_share, "row", "always", "keeps", 0, "extended"),
    Operator("column_share", 1, _column_share, "column", "always", "keeps", 0, "extended"),
    Operator("row_normalize", 1, _row_normalize, "row", "always", "keeps", 0, "extended"),
    Operator("column_normalize", 1, _column_normalize, "column", "always", "keeps", 0, "extended"),
    Operator("small", 1, _small, "matrix", "never", "nonnegative", 0, "extended", "scalar"),
)

OPERATORS = Registry("operators", Operator, {one.name: one for one in _ALL})
PUBLISHED = tuple(one.name for one in _ALL if one.group == "published")
EXTENDED = tuple(one.name for one in _ALL if one.group == "extended")
