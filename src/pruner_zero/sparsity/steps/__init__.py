"""What can follow a mask: swaps, SparseGPT's sweep, least squares; steps of one shape by name."""

from pruner_zero.sparsity.steps.exact_swaps import refine_exact
from pruner_zero.sparsity.steps.least_squares import Solution, exact_update, solve
from pruner_zero.sparsity.steps.registry import STEPS, in_order, plan, run_steps, used_damping
from pruner_zero.sparsity.steps.step import Layer, Scorer, Step, Updated
from pruner_zero.sparsity.steps.swaps import refine_mask
from pruner_zero.sparsity.steps.sweep import retarget, sparsegpt

__all__ = [
    "STEPS",
    "Layer",
    "Scorer",
    "Solution",
    "Step",
    "Updated",
    "exact_update",
    "in_order",
    "plan",
    "refine_exact",
    "refine_mask",
    "retarget",
    "run_steps",
    "solve",
    "sparsegpt",
    "used_damping",
]
