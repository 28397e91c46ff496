"""Canonical forms: one expression for all that give the same mask.

Search, analysis and report use this room to recognise equal metrics; nothing else in `metric/`
depends on it.
"""

from pruner_zero.metric.canonical.form import Scope, canonical, masks
from pruner_zero.metric.canonical.normal import Normal

__all__ = ["Normal", "Scope", "canonical", "masks"]
