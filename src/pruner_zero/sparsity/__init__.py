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
from pruner_zero.sparsity.hessian import Hessian
from pruner_zero.sparsity.pattern import (
    SCOPES,
    Pattern,
    SemiStructured,
    Unstructured,
    check_width,
    parse_pattern,
    pruned_count,
)
from pruner_zero.sparsity.selection import BLOCK_COLUMNS, keep_mask
from pruner_zero.sparsity.steps import (
    STEPS,
    Layer,
    Scorer,
    Step,
    Updated,
    exact_update,
    in_order,
    plan,
    refine_exact,
    refine_mask,
    retarget,
    run_steps,
    solve,
    sparsegpt,
    used_damping,
)
from pruner_zero.sparsity.threshold import GlobalThreshold, global_threshold, keep_masks_global

__all__ = [
    "BLOCK_COLUMNS",
    "SCOPES",
    "STEPS",
    "Allocation",
    "GlobalThreshold",
    "Granularity",
    "Hessian",
    "Layer",
    "Pattern",
    "Scope",
    "Scorer",
    "SemiStructured",
    "Step",
    "Unstructured",
    "Updated",
    "by_error",
    "check_width",
    "counts",
    "exact",
    "exact_update",
    "from_offsets",
    "global_threshold",
    "in_order",
    "keep_mask",
    "keep_masks_global",
    "outlier_share",
    "owl",
    "parse_pattern",
    "plan",
    "pruned_count",
    "read_allocation",
    "refine_exact",
    "refine_mask",
    "retarget",
    "run_steps",
    "solve",
    "sparsegpt",
    "uniform",
    "used_damping",
]
