"""Symbolic simplification: canonical forms, one for all expressions that give the same mask.

Search, analysis and report use this room to recognise equal metrics; nothing else in `metric/`
depends on it.
"""

from pruner_zero.metric.canonical.form import canonical, masks
from pruner_zero.metric.canonical.normal import Normal
from pruner_zero.metric.canonical.simplify import simplify_opposing

__all__ = ["Normal", "canonical", "masks", "simplify_opposing"]
