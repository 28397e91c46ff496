"""The promises of pruner-zero, held by what this package adds."""

from pruner_zero_example import COUNTING, SOFTSIGN, SOFTSIGN_WANDA

from pruner_zero.testing import NamedMetricSuite, OperatorSuite, TextSourceSuite


class TestSoftsign(OperatorSuite):
    operator = SOFTSIGN


class TestSoftsignWanda(NamedMetricSuite):
    metric = SOFTSIGN_WANDA


class TestCounting(TextSourceSuite):
    source = COUNTING
