"""The default algorithm with adaptive mutations, an arm of `duel.py`."""

import math
from collections import defaultdict, deque
from collections.abc import Iterator, Sequence

import numpy as np

from pruner_zero.evolution.ask_tell import Result
from pruner_zero.evolution.niches import Evolution, on_one_scale
from pruner_zero.evolution.space import SearchSpace
from pruner_zero.evolution.variation import MUTATIONS
from pruner_zero.metric import Call, Constant, Expression

# A place of an expression: the operator above it and the operand's index; and the symbol there.
Place = tuple[str, int, str]

# How many children are drawn for one, and the scale of their priorities in the softmax.
_DRAWN, _TEMPERATURE = 4, 0.1
# The weight of how seldom a symbol was tried at a place.
_EXPLORE = 0.1
# The least rate of a mutation, how fast rates follow, and how many of its gains count.
_LEAST, _PURSUIT, _GAINS = 0.04, 0.1, 20


class Adaptive(Evolution):
    """The rates of mutations and the symbols that they set follow what they brought.

    Symbols: of some children of a mutation one is drawn by the softmax of the mean priority of its
    new places. The priority of a symbol at a place (below which operator, as which operand) is the
    mean rank of the candidates that have it, with an upper confidence bound. Rates: the mutation
    with the largest gain over a parent among its last children is drawn more often.
    Source: operator-priority evolution (AutoBERT-Zero, Gao et al. 2021, 2107.07445) and adaptive
    pursuit with extreme credit (Thierens 2005, Fialho et al. 2008); that one of several children is
    drawn, in the place of a symbol, is ours.
    """

    def __init__(self, space: SearchSpace, seed: int) -> None:
        super().__init__(space, seed)
        self._ranks: dict[Place, list[float]] = defaultdict(list)
        self._rates = {name: 1 / len(MUTATIONS) for name in MUTATIONS}
        self._gains: dict[str, deque[float]] = {name: deque(maxlen=_GAINS) for name in MUTATIONS}
        self._values: dict[int, float] = {}

    def learn(self, results: Sequence[Result]) -> None:
        """Learn as the default does; then ranks by place, and gains by mutation."""
        super().learn(results)
        judged = [
            (candidate, on_one_scale(evaluation).value)
            for candidate, evaluation in results
            if evaluation.counts
        ]
        known = {
            niche.scope: sorted(member[1].key[1] for member in niche.members)
            for niche in self.niches
        }
        for candidate, value in judged:
            self._values[candidate.number] = value
            others = known[candidate.scope]
            rank = 1 - float(np.searchsorted(others, value)) / max(1, len(others))
            for place in set(_places(candidate.expression)):
                self._ranks[place].append(rank)
            if candidate.operation in MUTATIONS and candidate.parents[0] in self._values:
                gain = self._values[candidate.parents[0]] - value
                self._gains[candidate.operation].append(gain)
        best = max(MUTATIONS, key=lambda name: max(self._gains[name], default=-math.inf))
        for name in self._rates:
            aim = 1 - _LEAST * (len(MUTATIONS) - 1) if name == best else _LEAST
            self._rates[name] += _PURSUIT * (aim - self._rates[name])

    def _mutated(self, expression: Expression) -> tuple[str, Expression | None]:
        drawn = [super(Adaptive, self)._mutated(expression) for _ in range(_DRAWN)]
        drawn = [(name, child) for name, child in drawn if child is not None]
        if not drawn:
            return "grow", None
        old = set(_places(expression))
        priorities = np.array([self._priority(child, old) for _, child in drawn if child])
        chances = np.exp((priorities - priorities.max()) / _TEMPERATURE)
        return drawn[self.generator.choice(len(drawn), p=chances / chances.sum())]

    def _drawn_mutation(self) -> str:
        names = [*self._rates]
        rates = np.array([self._rates[name] for name in names])
        return names[self.generator.choice(len(names), p=rates / rates.sum())]

    def _priority(self, child: Expression, old: set[Place]) -> float:
        """The mean priority of the places that the parent does not have."""
        new = [place for place in _places(child) if place not in old] or [*_places(child)]
        total = sum(map(len, self._ranks.values()))
        priorities = []
        for place in new:
            ranks = self._ranks.get(place, ())
            mean = sum(ranks) / len(ranks) if ranks else 0.5
            bound = _EXPLORE * math.sqrt(2 * math.log(total + 1) / (len(ranks) + 1))
            priorities.append(mean + bound)
        return sum(priorities) / len(priorities)


def _places(expression: Expression, above: str = "root", index: int = 0) -> Iterator[Place]:
    if isinstance(expression, Constant):
        return
    symbol = expression.operator.name if isinstance(expression, Call) else str(expression)
    yield above, index, symbol
    for position, operand in enumerate(expression.operands):
        yield from _places(operand, symbol, position)
