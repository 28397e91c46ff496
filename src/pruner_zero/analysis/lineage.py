"""The ancestors of a metric, back to the random expressions it began with."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pruner_zero.evolution.archive import Record

GENERATIONS = 12


@dataclass(frozen=True)
class Ancestor:
    """One line of a family tree, which lists the winner first and parents below their child.

    generation: 0 for the winner, 1 for its parents. rung, value: those of the candidate, or of
    the earlier one (`same_as`) that has the same mask. repeated: its parents are listed at another
    line of the same candidate, nearer to the winner. older: how many parents lie beyond the last
    generation that is listed.
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
    repeated: bool = False
    older: int = 0


@dataclass(frozen=True)
class Lineage:
    """The family tree of a candidate.

    tree: its lines, down to `GENERATIONS` generations. ancestors: how many there are in all.
    generations: how many steps back the farthest ancestor is by the shortest path. roots: the
    numbers of the ancestors without parents, which are random expressions.
    """

    tree: tuple[Ancestor, ...] = ()
    ancestors: int = 0
    generations: int = 0
    roots: tuple[int, ...] = ()


def lineage(winner: Record, records: Sequence[Record], generations: int = GENERATIONS) -> Lineage:
    """The family tree of `winner`; parents that are not among `records` are left out."""
    by_number = {record.candidate.number: record for record in records}
    first = winner.candidate.number
    # Breadth first, so that each ancestor's parents are listed where it is nearest.
    nearest, listed_under, queue = {first: 0}, {first: first}, [first]
    for number in queue:
        for parent in _parents(by_number[number], by_number):
            if parent not in nearest:
                nearest[parent], listed_under[parent] = nearest[number] + 1, number
                queue.append(parent)
    lines: list[Ancestor] = []
    pending = [(first, first, 0)]
    while pending:
        number, child, generation = pending.pop()
        parents = _parents(by_number[number], by_number)
        repeated = listed_under[number] != child
        listed = not repeated and generation < generations
        older = 0 if repeated or listed else len(parents)
        lines.append(
            _line(by_number[number], by_number, generation, repeated and bool(parents), older)
        )
        if listed:
            pending.extend((parent, number, generation + 1) for parent in reversed(parents))
    roots = tuple(sorted(number for number in nearest if not by_number[number].candidate.parents))
    return Lineage(tuple(lines), len(nearest) - 1, max(nearest.values()), roots)


def _parents(record: Record, by_number: Mapping[int, Record]) -> list[int]:
    return [number for number in dict.fromkeys(record.candidate.parents) if number in by_number]


def _line(
    record: Record, by_number: Mapping[int, Record], generation: int, repeated: bool, older: int
) -> Ancestor:
    candidate, same_as = record.candidate, record.evaluation.same_as
    judged = by_number.get(same_as, record) if same_as is not None else record
    return Ancestor(
        candidate.number,
        generation,
        candidate.operation,
        str(candidate.expression),
        candidate.scope,
        judged.evaluation.rung,
        judged.evaluation.value,
        same_as,
        candidate.parents,
        repeated,
        older,
    )
