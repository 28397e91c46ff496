"""What a search teaches: what its good metrics share, and whether its rungs agree."""

from pruner_zero.analysis.analysis import Analysis, analyze
from pruner_zero.analysis.principles import Principle, across

__all__ = ["Analysis", "Principle", "across", "analyze"]
