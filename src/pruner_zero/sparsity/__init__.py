"""Scores → mask → weights: patterns, exact selection, better masks, updates under a mask."""

from pruner_zero.choices import Scope
from pruner_zero.sparsity.hessian import Hessian
from pruner_zero.sparsity.pattern import (
    SCOPES,
    LazyTensors,
    Pattern,
    Reach,
    SemiStructured,
    Unstructured,
    choose_masks,
    groups,
    keep_mask,
)
from pruner_zero.sparsity.selection import BLOCK_COLUMNS, pruned_count
from pruner_zero.sparsity.steps.exact_swaps import refine_exact
from pruner_zero.sparsity.steps.least_squares import Solution, exact_update, solve
from pruner_zero.sparsity.steps.registry import STEPS, in_order, plan, run_steps, used_damping
from pruner_zero.sparsity.steps.step import Layer, Step, Updated
from pruner_zero.sparsity.steps.swaps import refine_mask
from pruner_zero.sparsity.steps.sweep import retarget, sparsegpt
from pruner_zero.sparsity.threshold import GlobalThreshold, global_threshold

__all__ = [
    "BLOCK_COLUMNS",
    "SCOPES",
    "STEPS",
    "GlobalThreshold",
    "Hessian",
    "Layer",
    "LazyTensors",
    "Pattern",
    "Reach",
    "Scope",
    "SemiStructured",
    "Solution",
    "Step",
    "Unstructured",
    "Updated",
    "choose_masks",
    "exact_update",
    "global_threshold",
    "groups",
    "in_order",
    "keep_mask",
    "plan",
    "pruned_count",
    "refine_exact",
    "refine_mask",
    "retarget",
    "run_steps",
    "solve",
    "sparsegpt",
    "used_damping",
]
