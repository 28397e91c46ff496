"""What a search teaches: the study of its folder, and what its good metrics share."""

from pruner_zero.analysis.analysis import Analysis, analyze
from pruner_zero.analysis.study import Candidates, Study

__all__ = ["Analysis", "Candidates", "Study", "analyze"]
