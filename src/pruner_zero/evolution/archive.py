"""Everything a search did, in an append-only journal from which all else follows."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from pruner_zero.errors import PrunerZeroError
from pruner_zero.evolution.candidate import Candidate, Evaluation
from pruner_zero.evolution.evaluator import Outcome, Rung
from pruner_zero.files import CHECKSUM, append_line, is_intact, read_lines, with_checksum
from pruner_zero.metric import parse
from pruner_zero.sparsity import Scope

JOURNAL = "journal.jsonl"
FORMAT = 1


@dataclass(frozen=True)
class Record:
    """A candidate with what became known of it and the canonical form it was compared by."""

    candidate: Candidate
    evaluation: Evaluation
    canonical: str

    def to_json(self) -> dict[str, Any]:
        """One journal line."""
        candidate, evaluation = self.candidate, self.evaluation
        offsets = {"offsets": list(candidate.offsets)} if candidate.offsets else {}
        return {
            "kind": "candidate",
            "number": candidate.number,
            "expression": str(candidate.expression),
            "scope": candidate.scope,
            "canonical": self.canonical,
            "parents": list(candidate.parents),
            "operation": candidate.operation,
            "rung": evaluation.rung,
            "value": evaluation.value if evaluation.rung else None,
            "results": dict(evaluation.results),
            "reason": evaluation.reason,
            "same_as": evaluation.same_as,
            "level": evaluation.level,
            "seconds": round(evaluation.seconds, 4),
            "expected": evaluation.expected,
            **offsets,
        }

    @classmethod
    def from_json(cls, line: dict[str, Any]) -> "Record":
        """Read back what `to_json` wrote."""
        candidate = Candidate(
            line["number"],
            parse(line["expression"]),
            cast(Scope, line["scope"]),
            tuple(line["parents"]),
            line["operation"],
            tuple(line.get("offsets", ())),
        )
        value = float("inf") if line["value"] is None else line["value"]
        names = ("rung", "results", "reason", "same_as", "level", "seconds")
        known = {name: line[name] for name in names}
        evaluation = Evaluation(value=value, expected=line.get("expected"), **known)
        return cls(candidate, evaluation, line["canonical"])


class Archive:
    """The records of one run under `folder`, and the outcomes of rungs not yet in a record.

    The order of the journal's lines is decided by the seed alone. A run that is resumed asks
    for everything again from the beginning; what the journal knows is taken from it, and
    lines that are there are not written twice. Raises PrunerZeroError where the journal
    belongs to other settings or is damaged.
    """

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self.path = folder / JOURNAL
        self.records: list[Record] = []
        self.saved: Counter[str] = Counter()
        lines = read_journal(folder)
        header = {"kind": "run", "format": FORMAT, "settings": settings}
        # A run that was begun before lines had checksums goes on without them.
        self._checked = not lines or CHECKSUM in lines[0]
        if not lines:
            self._append(header)
        elif {**lines[0], CHECKSUM: None} != {**header, CHECKSUM: None}:
            raise PrunerZeroError(
                f"{folder} holds a run of other settings: {_difference(lines[0], header)}"
            )
        self._outcomes = {
            (line["number"], line["rung"]): Outcome.from_json(line)
            for line in lines
            if line["kind"] == "outcome"
        }
        self._written = sum(line["kind"] == "candidate" for line in lines)
        self.elapsed = max((line.get("elapsed", 0.0) for line in lines), default=0.0)
        self.batches_written = sum(line["kind"] == "batch" for line in lines)
        self.batches = 0
        self._canonical: dict[tuple[str, str], int] = {}
        self._fingerprints: dict[str, int] = {}

    def known(self, number: int, rung: Rung) -> Outcome | None:
        """The outcome that an earlier process left, if it did."""
        return self._outcomes.get((number, rung))

    def remember(self, outcome: Outcome) -> None:
        """Make one outcome durable, unless it is already."""
        if (outcome.number, outcome.rung) not in self._outcomes:
            self._outcomes[outcome.number, outcome.rung] = outcome
            self._append({"kind": "outcome", **outcome.to_json()})

    def twin(self, canonical: str, scope: str, number: int) -> int | None:
        """The earlier candidate of this canonical form and scope; else `number` becomes it."""
        first = self._canonical.setdefault((canonical, scope), number)
        return None if first == number else first

    def same_mask(self, fingerprint: str, number: int) -> int | None:
        """The earlier candidate with this fingerprint; else `number` becomes it."""
        first = self._fingerprints.setdefault(fingerprint, number)
        return None if first == number else first

    def commit(
        self, records: Sequence[Record], elapsed: float, avoided: Mapping[str, int] = {}
    ) -> None:
        """Add a whole batch; elapsed: seconds since the run began, over all its processes.

        avoided: proposals that simplification has spared so far, by what gave them away.
        """
        for record in records:
            if len(self.records) >= self._written:
                self._append(record.to_json())
            self.records.append(record)
            if record.evaluation.level:
                self.saved[record.evaluation.level] += 1
        self.batches += 1
        if self.batches > self.batches_written:
            line = {"kind": "batch", "elapsed": round(elapsed, 2), "avoided": dict(avoided)}
            self._append(line)
            self.elapsed = elapsed

    def evaluation(self, number: int) -> Evaluation:
        """What is known of candidate `number`."""
        return self.records[number].evaluation

    def distinct(self) -> Iterator[Record]:
        """The records with a result of their own, in order of submission."""
        return (record for record in self.records if record.evaluation.counts)

    def best(self, count: int = 1, scope: str | None = None) -> list[Record]:
        """The best records, best first; on equal values the smaller, then the earlier one."""
        own = (one for one in self.distinct() if scope in (None, one.candidate.scope))
        return sorted(own, key=_order)[:count]

    def _append(self, line: dict[str, Any]) -> None:
        append_line(self.path, with_checksum(line) if self._checked else line)


def read_journal(folder: Path) -> list[dict[str, Any]]:
    """The lines of the journal under `folder`, each as it was written; none where there is none.

    Raises PrunerZeroError naming the first line that does not fit its checksum. Journals from
    before lines had one are taken as they are.
    """
    lines = read_lines(folder / JOURNAL)
    if any(CHECKSUM in line for line in lines):
        for number, line in enumerate(lines, 1):
            if not is_intact(line):
                raise PrunerZeroError(
                    f"line {number} of {folder / JOURNAL} is damaged: restore the file, or delete "
                    "that line and all after it, whose work is then done again"
                )
    return lines


def read_records(folder: Path) -> list[Record]:
    """All records of a run, finished or not. Raises PrunerZeroError where there is no run."""
    lines = read_journal(folder)
    if not lines:
        raise PrunerZeroError(f"{folder} holds no search: give the folder that search wrote")
    return [Record.from_json(line) for line in lines if line["kind"] == "candidate"]


def read_avoided(folder: Path) -> dict[str, int]:
    """Proposals that simplification spared a run, by what gave them away."""
    lines = [line for line in read_journal(folder) if line["kind"] == "batch"]
    return dict(lines[-1].get("avoided", {})) if lines else {}


def read_run(folder: Path) -> dict[str, Any]:
    """The settings that a run was started with."""
    lines = read_journal(folder)
    if not lines:
        raise PrunerZeroError(f"{folder} holds no search: give the folder that search wrote")
    settings: dict[str, Any] = lines[0]["settings"]
    return settings


def _order(record: Record) -> tuple[tuple[int, float], int, int]:
    candidate = record.candidate
    return record.evaluation.key, candidate.expression.size, candidate.number


def _difference(there: dict[str, Any], here: dict[str, Any]) -> str:
    before, now = there.get("settings", {}), here["settings"]
    changed = [key for key in {**now, **before} if before.get(key) != now.get(key)]
    return f"{', '.join(changed) or 'format'} differ; choose another folder or the same settings"
