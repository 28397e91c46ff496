"""Updates as functions of tensors, their constants at other values where a test asks for it."""

from typing import Any
from unittest.mock import patch

from torch import Tensor

from pruner_zero.sparsity import selection as patterns
from pruner_zero.sparsity import sweep
from pruner_zero.sparsity.hessian import Hessian
from pruner_zero.sparsity.pattern import Pattern
from pruner_zero.sparsity.selection import Unstructured
from pruner_zero.sparsity.update import Layer, Updated

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
    return Layer(weight, Hessian(gram, damping, name), pattern, mask, name=name)


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
