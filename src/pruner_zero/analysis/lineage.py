"""Where a metric comes from: its parents, back to the random trees it began with."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pruner_zero.evolution.archive import Record

GENERATIONS = 12


@dataclass(frozen=True)
class Ancestor:
    """One line of a family tree, which is listed from the winner down, parents below children.

    generation: 0 for the winner, 1 for its parents. rung, value: those of the candidate, or of
    the earlier one (`same_as`) that has the same mask. repeated: its own parents are listed
    where it occurs nearer to the winner. older: how many parents lie beyond the last
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

    tree: its lines, down to `GENERATIONS` generations. ancestors, generations: how many there
    are in all, and how many steps back the farthest is by the shortest way. roots: the
    numbers of those without parents, the random ones.
    """

    tree: tuple[Ancestor, ...] = ()
    ancestors: int = 0
    generations: int = 0
    roots: tuple[int, ...] = ()


def lineage(winner: Record, records: Sequence[Record], generations: int = GENERATIONS) -> Lineage:
    """The family tree of `winner` among `records`; parents that are not there are left out."""
    known = {record.candidate.number: record for record in records}
    first = winner.candidate.number
    # Breadth first, so that each ancestor's parents are listed where it is nearest.
    nearest, listed_under, queue = {first: 0}, {first: first}, [first]
    for number in queue:
        for parent in _parents(known[number], known):
            if parent not in nearest:
                nearest[parent], listed_under[parent] = nearest[number] + 1, number
                queue.append(parent)
    lines: list[Ancestor] = []
    pending = [(first, first, 0)]
    while pending:
        number, child, generation = pending.pop()
        parents = _parents(known[number], known)
        repeated = listed_under[number] != child
        listed = not repeated and generation < generations
        older = 0 if repeated or listed else len(parents)
        lines.append(_line(known[number], known, generation, repeated and bool(parents), older))
        if listed:
            pending.extend((parent, number, generation + 1) for parent in reversed(parents))
    roots = tuple(sorted(number for number in nearest if not known[number].candidate.parents))
    return Lineage(tuple(lines), len(nearest) - 1, max(nearest.values()), roots)


def _parents(record: Record, known: Mapping[int, Record]) -> list[int]:
    return [number for number in dict.fromkeys(record.candidate.parents) if number in known]


def _line(
    record: Record, known: Mapping[int, Record], generation: int, repeated: bool, older: int
) -> Ancestor:
    candidate, same_as = record.candidate, record.evaluation.same_as
    judged = known.get(same_as, record) if same_as is not None else record
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
