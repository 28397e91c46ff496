"""Tests for operators, named metrics, texts and executors of other packages.

Derive a test class from a suite; pytest finds it.

from pruner_zero.testing import OperatorSuite

class TestSoftsign(OperatorSuite):
    operator = SOFTSIGN
"""

from pruner_zero.testing.executors import Doubling, ExecutorSuite
from pruner_zero.testing.metrics import NamedMetricSuite
from pruner_zero.testing.operators import OperatorSuite
from pruner_zero.testing.texts import TextSourceSuite

__all__ = ["Doubling", "ExecutorSuite", "NamedMetricSuite", "OperatorSuite", "TextSourceSuite"]
