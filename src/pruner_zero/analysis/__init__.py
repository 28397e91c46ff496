"""What a search teaches, finished or not: what good metrics share, and whether rungs agree."""

from pruner_zero.analysis.analysis import Analysis, analyze

__all__ = ["Analysis", "analyze"]
