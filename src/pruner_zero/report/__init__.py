"""Reports for people: one self-contained HTML page, and its figures."""

from pruner_zero.report.page import report as report
