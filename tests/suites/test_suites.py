"""The suites pass for what is built in, and each of their tests fails for something broken."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from pruner_zero.execution.executor import Executor, SerialExecutor, Work
from pruner_zero.metric.metric import NAMED, NamedMetric
from pruner_zero.metric.operators import OPERATORS, Operator
from pruner_zero.text.source import SOURCES, Role, TextSource
from tests.suites.executors import ExecutorSuite
from tests.suites.metrics import NamedMetricSuite
from tests.suites.operators import OperatorSuite
from tests.suites.texts import TextSourceSuite


def claims_of(suite: Any) -> dict[str, Callable[[], None]]:
    return {name: getattr(suite, name) for name in dir(suite) if name.startswith("test_")}


def failing(suite: Any) -> set[str]:
    """The names of the suite's tests that fail, without `test_`."""
    failed = set()
    for name, test in claims_of(suite).items():
        try:
            test()
        except Exception:
            failed.add(name.removeprefix("test_"))
    return failed


@pytest.mark.parametrize("name", NAMED)
def test_every_named_metric_passes(name: str) -> None:
    suite = NamedMetricSuite()
    suite.metric = NAMED[name]
    for test in claims_of(suite).values():
        test()


def _spoil(x: Tensor) -> Tensor:
    return x.mul_(2)


SHAPE = "the_shape_rule_predicts_the_shape_of_the_result"
OPERANDS = "it_keeps_the_dtype_and_leaves_its_operands_alone"
REACH = "an_entry_depends_on_nothing_beyond_the_reach"
ORDER = "the_order_of_the_first_operand_is_kept_where_increasing_says_so"
DISTINCT = "in_fp32_an_increasing_result_stays_distinct"
SIGN = "the_sign_of_the_result"
DEGREE = "a_positive_factor_comes_out_as_the_degree_says"
PARITY = "the_parity"
POWER = "a_power_or_a_multiple_is_one"
RESCALING = "a_rescaling_is_one"
ORDERED = "the_order_of_operands_does_not_matter_where_it_commutes"
TWINS = "twins_are_worth_nothing_where_it_says_so"
NAME = "it_is_found_by_its_name"


def half(apply: Callable[..., Tensor] = torch.abs, arity: int = 1, **facts: Any) -> Operator:
    return Operator("half", arity, apply, **facts)


@pytest.mark.parametrize(
    ("broken", "test"),
    [
        (half(), None),
        (half(torch.atan2, 2, degree=0), None),
        (half(torch.sum, reach="matrix"), SHAPE),
        (half(torch.Tensor.half), OPERANDS),
        (half(_spoil), OPERANDS),
        (half(OPERATORS["mms"].apply, reach="row"), REACH),
        (half(torch.neg, increasing="always"), ORDER),
        (half(torch.tanh, increasing="always"), DISTINCT),
        (half(torch.neg, sign="keeps"), SIGN),
        (half(torch.square, degree=1), DEGREE),
        (half(torch.sin, parity="even"), PARITY),
        (half(torch.cos, parity="odd"), PARITY),
        (half(torch.sigmoid, parity="odd"), PARITY),
        (half(lambda x: 2 * x.abs(), exponent=1), POWER),
        (half(lambda x: x / 4, factor=0.5), POWER),
        (half(lambda x: x / x.norm() ** 0.5, reach="matrix", rescaling="scale"), RESCALING),
        (half(torch.sub, 2, commutative=True), ORDERED),
        (half(torch.mul, 2, twins=True), TWINS),
        (half(inverse="nothing"), NAME),
    ],
)
def test_a_false_fact_of_an_operator_is_found(
    broken: Operator, test: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(OPERATORS._loaded, "half", broken)
    monkeypatch.setattr(type(OPERATORS), "plugged", {"half": "mine"})
    suite = OperatorSuite()
    suite.operator = broken
    failed = failing(suite)
    # What follows from a false power or rescaling is false as well.
    assert test in failed if test in (POWER, RESCALING) else failed == ({test} if test else set())


def test_an_operator_that_is_not_installed_is_found() -> None:
    suite = OperatorSuite()
    suite.operator = half()
    assert "it_is_found_by_its_name" in failing(suite)


def test_a_broken_metric_is_found() -> None:
    suite = NamedMetricSuite()
    suite.metric = NamedMetric("mine", "W - W", "", "nobody")
    assert len(failing(suite)) == len(claims_of(suite))


@pytest.mark.parametrize(
    ("documents", "test"),
    [
        (lambda role: ["the same"], "no_document_serves_two_roles"),
        (lambda role: [f"{role} {torch.rand(()).item()}"], "it_is_the_same_text_each_time"),
    ],
)
def test_a_broken_text_source_is_found(
    documents: Callable[[Role], Iterable[str]], test: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite = TextSourceSuite()
    suite.source = TextSource("mine", documents)
    monkeypatch.setitem(SOURCES._loaded, "mine", suite.source)
    monkeypatch.setattr(type(SOURCES), "plugged", {"mine": "mine"})
    assert test in failing(suite)


class _Backwards(SerialExecutor[Any, Any]):
    def map(self, tasks: Iterable[Any]) -> Iterator[Any]:
        yield from reversed(list(super().map(list(tasks))))


class _Greedy(SerialExecutor[Any, Any]):
    def map(self, tasks: Iterable[Any]) -> Iterator[Any]:
        some = [task for task, _ in zip(tasks, range(100), strict=False)]
        yield from super().map(some)


@pytest.mark.parametrize(
    ("executor", "test"),
    [
        (_Greedy, "an_endless_source_is_not_read_to_its_end"),
        (_Backwards, "results_come_in_the_order_of_submission"),
    ],
)
def test_a_broken_executor_is_found(executor: type[SerialExecutor[Any, Any]], test: str) -> None:
    class Suite(ExecutorSuite):
        def start(self, work: Work[Any, Any]) -> Executor[Any, Any]:
            return executor(work)

    suite = Suite()
    if executor is _Backwards:
        # It would read the endless source for ever.
        suite.test_an_endless_source_is_not_read_to_its_end = lambda: None  # type: ignore[method-assign]
    assert test in failing(suite)
