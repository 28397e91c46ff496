"""Scores → mask → weights: patterns, exact selection, better masks, updates under a mask."""

from pruner_zero.choices import Scope
from pruner_zero.sparsity.allocation import (
    Allocation,
    Granularity,
    counts,
    exact,
    read_allocation,
)
from pruner_zero.sparsity.allocation_error import by_error
from pruner_zero.sparsity.allocation_rules import (
    from_offsets,
    outlier_share,
    owl,
    uniform,
)
from pruner_zero.sparsity.exact_swaps import refine_exact
from pruner_zero.sparsity.least_squares import (
    LeastSquaresResult,
    Preparation,
    exact_update,
    prepare,
)
from pruner_zero.sparsity.pattern import (
    SCOPES,
    Pattern,
    SemiStructured,
    Unstructured,
    check_width,
    parse_pattern,
    pruned_count,
)
from pruner_zero.sparsity.refine import refine_mask
from pruner_zero.sparsity.selection import BLOCK_COLUMNS, keep_mask
from pruner_zero.sparsity.threshold import GlobalThreshold, global_threshold, keep_masks_global
from pruner_zero.sparsity.update import (
    Scorer,
    SparseGPTResult,
    hessian_diagonal,
    inverse_cholesky,
    retarget,
    sparsegpt,
)

__all__ = [
    "BLOCK_COLUMNS",
    "SCOPES",
    "Allocation",
    "GlobalThreshold",
    "Granularity",
    "LeastSquaresResult",
    "Pattern",
    "Preparation",
    "Scope",
    "Scorer",
    "SemiStructured",
    "SparseGPTResult",
    "Unstructured",
    "by_error",
    "check_width",
    "counts",
    "exact",
    "exact_update",
    "from_offsets",
    "global_threshold",
    "hessian_diagonal",
    "inverse_cholesky",
    "keep_mask",
    "keep_masks_global",
    "outlier_share",
    "owl",
    "parse_pattern",
    "prepare",
    "pruned_count",
    "read_allocation",
    "refine_exact",
    "refine_mask",
    "retarget",
    "sparsegpt",
    "uniform",
]
