"""An operator, a metric that uses it, and a text: what a plug-in of pruner-zero looks like."""

from collections.abc import Iterator

from torch import Tensor

from pruner_zero.metric.metric import NamedMetric
from pruner_zero.metric.operators import POWER, Operator
from pruner_zero.text.source import Role, TextSource


def _softsign(x: Tensor) -> Tensor:
    return x / (1 + x.abs())


SOFTSIGN = Operator(
    "softsign",
    1,
    _softsign,
    increasing="always",
    sign="keeps",
    parity="odd",
    latex=(r"\frac{#1}{1 + \left|#1\right|}", POWER),
)

SOFTSIGN_WANDA = NamedMetric(
    "softsign-wanda",
    "softsign(W) * X",
    "Wanda with large weights held back",
    "an example, from no paper",
)

_FIRST: dict[Role, int] = {"calibration": 0, "search": 10_000, "test": 20_000}


def _numbers(role: Role) -> Iterator[str]:
    """Ten documents of a hundred numbers each; each role counts on from a place of its own."""
    for start in range(_FIRST[role], _FIRST[role] + 1000, 100):
        yield " ".join(map(str, range(start, start + 100)))


COUNTING = TextSource("counting", _numbers)
