"""Comparing methods on one model, in one run."""

from pruner_zero.comparison.compare import CLASSICS, CompareSettings, Comparison, compare

__all__ = ["CLASSICS", "CompareSettings", "Comparison", "compare"]
