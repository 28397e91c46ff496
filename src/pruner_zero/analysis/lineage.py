"""The ancestors of a metric, back to its first random expressions."""

from collections.abc import Sequence
from dataclasses import dataclass

from pruner_zero.evolution.archive import Record

GENERATIONS = 12


@dataclass(frozen=True)
class Ancestor:
    """A metric or one of its ancestors.

    generation: 0 for the metric, 1 for its parents; the least where several paths lead to it.
    rung, value: those of the candidate, or of the earlier one (`same_as`) that has the same mask.
    """

    number: int
    generation: int
    operation: str
    expression: str
    scope: str
    rung: int
    value: float
    same_as: int | None
    parents: tuple[int, ...]


@dataclass(frozen=True)
class Lineage:
    """The ancestors of a candidate.

    tree: the candidate, then its ancestors by generation, each once, of at most `GENERATIONS`
    generations. ancestors: how many there are in all. generations: how many steps back the
    farthest one is by the shortest path. roots: the numbers of the ancestors without parents,
    which are random expressions.
    """

    tree: tuple[Ancestor, ...] = ()
    ancestors: int = 0
    generations: int = 0
    roots: tuple[int, ...] = ()


def lineage(winner: Record, records: Sequence[Record], generations: int = GENERATIONS) -> Lineage:
    """The ancestors of `winner`; parents that are not among `records` are left out."""
    by_number = {record.candidate.number: record for record in records}
    # Breadth first, so that each ancestor has its least generation.
    nearest, queue = {winner.candidate.number: 0}, [winner.candidate.number]
    for number in queue:
        for parent in by_number[number].candidate.parents:
            if parent in by_number and parent not in nearest:
                nearest[parent] = nearest[number] + 1
                queue.append(parent)
    tree = []
    for number, generation in nearest.items():
        record = by_number[number]
        candidate, same_as = record.candidate, record.evaluation.same_as
        judged = record if same_as is None else by_number.get(same_as, record)
        ancestor = Ancestor(
            number,
            generation,
            candidate.operation,
            str(candidate.expression),
            candidate.scope,
            judged.evaluation.rung,
            judged.evaluation.value,
            same_as,
            candidate.parents,
        )
        if generation <= generations:
            tree.append(ancestor)
    roots = tuple(sorted(number for number in nearest if not by_number[number].candidate.parents))
    return Lineage(tuple(tree), len(nearest) - 1, max(nearest.values()), roots)
