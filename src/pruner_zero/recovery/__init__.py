"""Recovery: fine-tuning of a pruned model that keeps its zeros."""

from pruner_zero.recovery.recover import recover
from pruner_zero.recovery.result import RecoverResult
from pruner_zero.recovery.train import Point
from pruner_zero.settings import RecoverSettings

__all__ = ["Point", "RecoverResult", "RecoverSettings", "recover"]
