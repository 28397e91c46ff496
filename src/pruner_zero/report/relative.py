"""The known metric that one resembles most."""

from dataclasses import dataclass, field

from pruner_zero.metric import NAMED, Call, Expression, NamedMetric, parse
from pruner_zero.metric.canonical import Scope, canonical

# Beyond this many nodes nothing known is near, and the distance takes long.
MAX_SIZE = 200

# Operators whose operands have no order; a chain of one of them is a single node here.
_COMMUTATIVE = frozenset({"add", "mul", "min", "max"})


@dataclass(frozen=True)
class Relative:
    """A known metric and how far it is by `tree_distance`; 0: both give the same masks."""

    metric: NamedMetric
    distance: int


def nearest_relative(expression: Expression, scope: Scope) -> Relative | None:
    """The known metric nearest to `expression`, by `tree_distance` of their canonical forms.

    scope: the comparison group that both are brought into their canonical form for. On equal
    distances the larger metric, which shares more, and then the one named first. None for
    more than 200 nodes. Source: ours.
    """
    form = canonical(expression, scope)
    if form.size > MAX_SIZE:
        return None
    known = [(metric, canonical(parse(metric.text), scope)) for metric in NAMED.values()]
    ranked = [
        (tree_distance(form, other), -other.size, place) for place, (_, other) in enumerate(known)
    ]
    distance, _, place = min(ranked)
    return Relative(known[place][0], distance)


def tree_distance(one: Expression, other: Expression) -> int:
    """How many nodes have to be inserted, removed or renamed to turn `one` into `other`.

    A sum of several terms is one node, and so is a product, a minimum, a maximum; the order of
    their operands does not count. Removing a node removes all its operands but at most one,
    which takes its place. Exponential in the operands of the widest node that both have.
    Source: ours, a simple form of the constrained distance of unordered trees (Zhang 1996).
    """
    return _distance(_node(one), _node(other), {})


@dataclass(frozen=True, eq=False)
class _Node:
    """A node with all operands of its chain; compared by identity."""

    label: str
    operands: tuple["_Node", ...]
    size: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", 1 + sum(one.size for one in self.operands))


def _node(expression: Expression) -> _Node:
    if not isinstance(expression, Call):
        return _Node(str(expression), ())
    name = expression.operator.name
    operands: list[_Node] = []
    for operand in map(_node, expression.operands):
        chained = name in _COMMUTATIVE and operand.label == name
        operands.extend(operand.operands if chained else [operand])
    return _Node(name, tuple(operands))


def _distance(a: _Node, b: _Node, known: dict[tuple[_Node, _Node], int]) -> int:
    if (a, b) not in known:
        ways = [(a.label != b.label) + _pairing(a, b, known)]
        ways += [a.size - one.size + _distance(one, b, known) for one in a.operands]
        ways += [b.size - one.size + _distance(a, one, known) for one in b.operands]
        known[a, b] = min(ways)
    return known[a, b]


def _pairing(a: _Node, b: _Node, known: dict[tuple[_Node, _Node], int]) -> int:
    """The least cost of pairing the operands of two nodes; those left over cost their size."""
    if a.label == b.label and a.label not in _COMMUTATIVE:
        return sum(_distance(x, y, known) for x, y in zip(a.operands, b.operands, strict=True))
    # The least cost of the first operands of `a`, by the set of those of `b` that they took.
    costs = {0: sum(one.size for one in b.operands)}
    for x in a.operands:
        longer = {taken: cost + x.size for taken, cost in costs.items()}
        for taken, cost in costs.items():
            for place, y in enumerate(b.operands):
                both = taken | 1 << place
                if both != taken:
                    paired = cost - y.size + _distance(x, y, known)
                    longer[both] = min(longer.get(both, paired), paired)
        costs = longer
    return min(costs.values())
