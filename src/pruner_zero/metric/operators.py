"""The built-in operators.

A new operator is one entry of `_PUBLISHED` or `_EXTENDED` and nothing else: simplification, text,
formulas, the search and the analysis read its facts here.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.linalg import vector_norm

from pruner_zero.metric.operator import ATOM, POWER, PRODUCT, SIGN, SUM, Operator
from pruner_zero.plugins import Registry

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


def _normalize(dim: int) -> Callable[[Tensor], Tensor]:
    return lambda x: _over(x, vector_norm(x, dim=dim, keepdim=True))


def _small(x: Tensor) -> Tensor:
    magnitude = x.abs()
    return (magnitude < 0.1 * magnitude.mean()).to(x.dtype).mean().reshape(1, 1)


# Numerics as released with Pruner-Zero (Dong 2024, arXiv 2406.02924).
_PUBLISHED = (
    Operator("sqr", 1, lambda x: x * x, exponent=2.0, inverse="sqrt", latex=("(#1)^{2}", POWER)),
    Operator("neg", 1, torch.neg, factor=-1.0, inverse="neg", latex=("-(#1)", SIGN)),
    Operator("abs", 1, torch.abs, exponent=1.0, latex=(r"\left|#1\right|", ATOM)),
    Operator(
        "log",
        1,
        lambda x: (x.abs() + 0.001).log(),
        "ln(|x| + 0.001)",
        increasing="nonnegative",
        parity="even",
        inverse="exp",
        latex=(r"\ln\left(|#1| + 0.001\right)", ATOM),
    ),
    Operator(
        "exp",
        1,
        lambda x: x.clamp(max=100).exp(),
        "e^min(x, 100)",
        sign="nonnegative",
        latex=(r"e^{\min\left(#1, 100\right)}", POWER),
    ),
    Operator("sqrt", 1, lambda x: x.abs().sqrt(), exponent=0.5, latex=(r"\sqrt{|#1|}", ATOM)),
    Operator("tanh", 1, torch.tanh, sign="keeps", parity="odd"),
    Operator("pow", 1, lambda x: x * x, exponent=2.0, inverse="sqrt", latex=("(#1)^{2}", POWER)),
    Operator("skp", 1, lambda x: x, factor=1.0),
    Operator(
        "mms",
        1,
        _min_max_scale,
        "(x - min) / (max - min) of the matrix",
        reach="matrix",
        sign="nonnegative",
        rescaling="affine",
    ),
    Operator(
        "zsn",
        1,
        _standardize,
        "(x - mean) / standard deviation of the matrix",
        reach="matrix",
        parity="odd",
        rescaling="affine",
    ),
    Operator(
        "add",
        2,
        torch.add,
        increasing="always",
        sign="keeps",
        degree=1,
        commutative=True,
        twins=True,
        infix=("+", SUM),
        latex=("(#1) + (#2)", SUM),
    ),
    Operator(
        "sub",
        2,
        torch.sub,
        increasing="always",
        degree=1,
        twins=True,
        infix=("-", SUM),
        latex=("(#1) - (#2)", SUM),
    ),
    Operator(
        "mul",
        2,
        torch.mul,
        sign="keeps",
        degree=2,
        commutative=True,
        infix=("*", PRODUCT),
        latex=(r"(#1) \cdot (#2)", PRODUCT),
    ),
    Operator(
        "div",
        2,
        lambda x, y: x / vector_norm(y),
        "x / Frobenius norm of y",
        reach="matrix",
        shape_rule="first",
        increasing="always",
        sign="keeps",
        degree=0,
        twins=True,
        latex=(r"\frac{#1}{\left\lVert #2\right\rVert_F}", POWER),
    ),
)

# Added by this project, so that every known metric can be written as an expression.
_EXTENDED = (
    Operator(
        "quotient",
        2,
        _quotient,
        sign="keeps",
        degree=0,
        twins=True,
        infix=("/", PRODUCT),
        latex=(r"\frac{#1}{#2}", POWER),
    ),
    Operator(
        "power",
        2,
        lambda x, exponent: x.abs().pow(exponent),
        sign="nonnegative",
        exponent="operand",
        latex=("|(#1)|^{#2}", POWER),
    ),
    Operator("min", 2, torch.minimum, sign="keeps", degree=1, commutative=True, twins=True),
    Operator("max", 2, torch.maximum, sign="keeps", degree=1, commutative=True, twins=True),
    Operator("row_share", 1, _share(1), "x / sum |x| of the row", reach="row", rescaling="scale"),
    Operator(
        "column_share", 1, _share(0), "x / sum |x| of the column", reach="column", rescaling="scale"
    ),
    Operator(
        "row_normalize", 1, _normalize(1), "x / L2 norm of the row", reach="row", rescaling="scale"
    ),
    Operator(
        "column_normalize",
        1,
        _normalize(0),
        "x / L2 norm of the column",
        reach="column",
        rescaling="scale",
    ),
    Operator(
        "small",
        1,
        _small,
        "share of elements with |x| below a tenth of the mean |x|",
        reach="matrix",
        shape_rule="scalar",
        sign="nonnegative",
        degree=0,
        parity="even",
    ),
)

OPERATORS = Registry("operators", Operator, {each.name: each for each in _PUBLISHED + _EXTENDED})
PUBLISHED = tuple(each.name for each in _PUBLISHED)
EXTENDED = tuple(each.name for each in _EXTENDED)
