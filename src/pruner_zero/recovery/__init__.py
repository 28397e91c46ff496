"""Recovery: fine-tuning that keeps every pruned weight at zero."""

from pruner_zero.recovery.recover import recover
from pruner_zero.recovery.result import RecoverResult
from pruner_zero.recovery.train import Point
from pruner_zero.settings import RecoverSettings

__all__ = ["Point", "RecoverResult", "RecoverSettings", "recover"]
