"""Pruning: from statistics to masks to a pruned model, block by block."""

from pruner_zero.choices import Mode
from pruner_zero.pruning.depth import Blocks
from pruner_zero.pruning.experts import Experts
from pruner_zero.pruning.lazy_scores import LazyScores
from pruner_zero.pruning.method import Method, Order, describe_steps
from pruner_zero.pruning.parse_method import parse_method, split_methods
from pruner_zero.pruning.pipeline import check_plan, prune_model
from pruner_zero.pruning.prune import prune
from pruner_zero.pruning.pruned import Pruned, run_method
from pruner_zero.pruning.record import MatrixRecord, total_sparsity
from pruner_zero.pruning.removal import Removal, chosen_by
from pruner_zero.pruning.result import PruneResult
from pruner_zero.pruning.scoring import reached_score
from pruner_zero.pruning.settings import calibration_texts, open_calibration
from pruner_zero.pruning.statistics import Statistics
from pruner_zero.pruning.structured import Structured

__all__ = [
    "Blocks",
    "Experts",
    "LazyScores",
    "MatrixRecord",
    "Method",
    "Mode",
    "Order",
    "PruneResult",
    "Pruned",
    "Removal",
    "Statistics",
    "Structured",
    "calibration_texts",
    "check_plan",
    "chosen_by",
    "describe_steps",
    "open_calibration",
    "parse_method",
    "prune",
    "prune_model",
    "reached_score",
    "run_method",
    "split_methods",
    "total_sparsity",
]
