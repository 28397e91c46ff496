"""The steps as functions of tensors, their constants at other values where a test asks for it."""

from typing import Any
from unittest.mock import patch

from torch import Tensor

from pruner_zero.sparsity import selection as patterns
from pruner_zero.sparsity.hessian import Hessian
from pruner_zero.sparsity.pattern import Pattern
from pruner_zero.sparsity.selection import Unstructured
from pruner_zero.sparsity.steps import least_squares, swaps, sweep
from pruner_zero.sparsity.steps.step import Layer, Updated

HALF = Unstructured(0.5)


def layer_of(
    weight: Tensor,
    gram: Tensor,
    mask: Tensor | None = None,
    pattern: Pattern = HALF,
    *,
    damping: float = 0.01,
    name: str = "matrix",
) -> Layer:
    """A layer with a Hessian of its own."""
    hessian = Hessian(gram, damping, name)
    return Layer(weight, hessian, pattern, mask, name=name)


def refine_mask(
    weight: Tensor,
    gram: Tensor,
    mask: Tensor,
    pattern: Pattern,
    *,
    rounds: int = 100,
    **options: Any,
) -> Tensor:
    """The mask after at most so many rounds of swaps."""
    with patch.object(swaps, "_ROUNDS", rounds):
        return swaps.refine_mask(layer_of(weight, gram, mask, pattern, **options)).mask


def exact_update(
    weight: Tensor,
    gram: Tensor,
    mask: Tensor,
    *,
    damping: float = 0.01,
    name: str = "matrix",
    tolerance: float = 1e-3,
    **options: Any,
) -> least_squares.Solution:
    """Least squares under a mask, finer than those of the step."""
    layer = layer_of(weight, gram, mask, damping=damping, name=name)
    return least_squares.solve(layer, tolerance=tolerance, **options)


def sparsegpt(
    weight: Tensor,
    gram: Tensor,
    pattern: Pattern,
    *,
    mask: Tensor | None = None,
    block_size: int = 128,
    **options: Any,
) -> Updated:
    """SparseGPT's sweep in blocks of so many columns."""
    with (
        patch.object(sweep, "BLOCK_COLUMNS", block_size),
        patch.object(patterns, "BLOCK_COLUMNS", block_size),
    ):
        return sweep.sparsegpt(layer_of(weight, gram, mask, pattern, **options))
