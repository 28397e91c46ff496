"""Results as people read them: one self-contained page, plots for papers, a study in Python."""

from pruner_zero.report.report import report
from pruner_zero.report.study import Candidates, Study

__all__ = ["Candidates", "Study", "report"]
