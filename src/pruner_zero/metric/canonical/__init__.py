"""Symbolic simplification: a simple equal form of a metric, by which equal metrics are recognised.

Search and report use this package; nothing else in `metric/` depends on it.
"""

from pruner_zero.metric.canonical.form import canonical
from pruner_zero.metric.canonical.normal import factors, product
from pruner_zero.metric.canonical.simplify import simplify_opposing
from pruner_zero.metric.canonical.skeleton import Skeleton

__all__ = ["Skeleton", "canonical", "factors", "product", "simplify_opposing"]
