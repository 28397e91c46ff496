"""Recovery: fine-tuning of a pruned model that keeps its zeros."""

from pruner_zero.recovery.checkpoint import Checkpoint
from pruner_zero.recovery.distillation import (
    check_distillation,
    check_memory,
    distill,
    least_bytes,
)
from pruner_zero.recovery.recover import recover
from pruner_zero.recovery.result import NOT_RETRAINED, RecoverResult
from pruner_zero.recovery.train import Point
from pruner_zero.settings import RecoverSettings

__all__ = [
    "NOT_RETRAINED",
    "Checkpoint",
    "Point",
    "RecoverResult",
    "RecoverSettings",
    "check_distillation",
    "check_memory",
    "distill",
    "least_bytes",
    "recover",
]
