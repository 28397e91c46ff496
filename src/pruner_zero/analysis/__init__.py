"""Analysis of a search: features of its good metrics, and agreement of its rungs."""

from pruner_zero.analysis.analysis import Analysis, analyze
from pruner_zero.analysis.principles import Principle, across

__all__ = ["Analysis", "Principle", "across", "analyze"]
