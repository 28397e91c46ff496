"""Tests that every plug-in must pass: derive a class from a suite and let pytest find it.

from pruner_zero.testing import OperatorSuite

class TestSoftsign(OperatorSuite):
    operator = SOFTSIGN
"""

from pruner_zero.testing.executors import Doubling, ExecutorSuite
from pruner_zero.testing.metrics import NamedMetricSuite
from pruner_zero.testing.operators import OperatorSuite
from pruner_zero.testing.texts import TextSourceSuite

__all__ = ["Doubling", "ExecutorSuite", "NamedMetricSuite", "OperatorSuite", "TextSourceSuite"]
