"""Comparing methods on one model, in one run."""

from pruner_zero.comparison.compare import Comparison, compare
from pruner_zero.settings import CLASSICS, CompareSettings

__all__ = ["CLASSICS", "CompareSettings", "Comparison", "compare"]
