"""Scores → mask → weights: patterns, exact selection, and SparseGPT's update under a mask."""

from pruner_zero.sparsity.pattern import (
    SCOPES,
    Pattern,
    Scope,
    SemiStructured,
    Unstructured,
    check_width,
    parse_pattern,
    pruned_count,
)
from pruner_zero.sparsity.selection import BLOCK_COLUMNS, keep_mask, keep_masks_global
from pruner_zero.sparsity.update import (
    SparseGPTResult,
    hessian_diagonal,
    inverse_cholesky,
    sparsegpt,
)

__all__ = [
    "BLOCK_COLUMNS",
    "SCOPES",
    "Pattern",
    "Scope",
    "SemiStructured",
    "SparseGPTResult",
    "Unstructured",
    "check_width",
    "hessian_diagonal",
    "inverse_cholesky",
    "keep_mask",
    "keep_masks_global",
    "parse_pattern",
    "pruned_count",
    "sparsegpt",
]
