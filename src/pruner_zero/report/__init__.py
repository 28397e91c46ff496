"""Results as people read them: one self-contained page, and its figures."""

from pruner_zero.report.report import report

__all__ = ["report"]
