"""What a search teaches: what its good metrics share, and whether its rungs agree."""

from pruner_zero.analysis.analysis import Analysis, analyze

__all__ = ["Analysis", "analyze"]
