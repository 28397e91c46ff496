"""Search spaces of different kinds, for property tests."""

from pruner_zero.evolution.space import SearchSpace
from pruner_zero.metric.operators import OPERATORS

WIDE = SearchSpace(
    terminals=("W", "G", "X", "O", "D", "S"),
    operators=tuple(OPERATORS),
    max_size=25,
)
SPACES = (
    SearchSpace(),
    WIDE,
    SearchSpace(operators=("mul", "power")),
    SearchSpace(terminals=("G", "X"), operators=("mul", "add", "sqrt", "row_share"), max_size=9),
)
