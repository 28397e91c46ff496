"""Symbolic simplification: a simple equal form of a metric, by which equal metrics are recognised.

Search, analysis and report use this room; nothing else in `metric/` depends on it.
"""

from pruner_zero.metric.canonical.form import canonical, masks
from pruner_zero.metric.canonical.normal import factors, product
from pruner_zero.metric.canonical.simplify import simplify_opposing
from pruner_zero.metric.canonical.skeleton import Skeleton

__all__ = ["Skeleton", "canonical", "factors", "masks", "product", "simplify_opposing"]
