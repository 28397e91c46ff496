"""Recovery: fine-tuning that keeps every pruned weight at zero."""

from pruner_zero.recovery.recover import recover
from pruner_zero.recovery.result import RecoverResult
from pruner_zero.recovery.settings import RecoverSettings
from pruner_zero.recovery.train import Point

__all__ = ["Point", "RecoverResult", "RecoverSettings", "recover"]
