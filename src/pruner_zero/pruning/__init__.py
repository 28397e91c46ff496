"""Pruning: from statistics to masks to a pruned model, block by block."""

from pruner_zero.pruning.apply import MaskedResult, apply_masks, prune_by_masks
from pruner_zero.pruning.masks import load_masks, save_masks
from pruner_zero.pruning.method import Method, Mode, Order
from pruner_zero.pruning.parse_method import parse_method, split_methods
from pruner_zero.pruning.pipeline import Selection, check_plan, prune_model
from pruner_zero.pruning.prune import prune
from pruner_zero.pruning.record import MatrixRecord, total_sparsity
from pruner_zero.pruning.result import PruneResult
from pruner_zero.pruning.settings import (
    CalibrationSettings,
    MethodSettings,
    PruneSettings,
    corpus_name,
    model_name,
)

__all__ = [
    "CalibrationSettings",
    "MaskedResult",
    "MatrixRecord",
    "Method",
    "MethodSettings",
    "Mode",
    "Order",
    "PruneResult",
    "PruneSettings",
    "Selection",
    "apply_masks",
    "check_plan",
    "corpus_name",
    "load_masks",
    "model_name",
    "parse_method",
    "prune",
    "prune_by_masks",
    "prune_model",
    "save_masks",
    "split_methods",
    "total_sparsity",
]
