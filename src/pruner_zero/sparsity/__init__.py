"""Scores → mask → weights: patterns, exact selection, better masks, updates under a mask."""

from pruner_zero.choices import Scope
from pruner_zero.sparsity.hessian import Hessian, shrinkage_for
from pruner_zero.sparsity.pattern import SCOPES, Pattern, Reach, groups, keep_mask
from pruner_zero.sparsity.selection import SemiStructured, Unstructured
from pruner_zero.sparsity.steps.registry import STEPS, in_order, plan, run_steps, used_damping
from pruner_zero.sparsity.steps.step import Layer, Step, Updated
from pruner_zero.sparsity.steps.swaps import refine_mask
from pruner_zero.sparsity.threshold import pruned_count

__all__ = [
    "SCOPES",
    "STEPS",
    "Hessian",
    "Layer",
    "Pattern",
    "Reach",
    "Scope",
    "SemiStructured",
    "Step",
    "Unstructured",
    "Updated",
    "groups",
    "in_order",
    "keep_mask",
    "plan",
    "pruned_count",
    "refine_mask",
    "run_steps",
    "shrinkage_for",
    "used_damping",
]
