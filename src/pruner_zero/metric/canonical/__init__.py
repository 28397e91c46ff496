"""Symbolic simplification: a simple equal form of a metric, by which equal metrics are recognised.

Search and report use this package; nothing else in `metric/` depends on it.
"""
