"""Reports for people: one self-contained HTML page, and its figures."""

from pruner_zero.report.report import report

__all__ = ["report"]
