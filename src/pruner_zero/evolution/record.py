"""The append-only journal of a search, from which everything else follows."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from itertools import accumulate
from pathlib import Path
from typing import Any, cast

from pruner_zero.choices import Group
from pruner_zero.errors import PrunerZeroError
from pruner_zero.evolution.candidate import Candidate, Evaluation
from pruner_zero.evolution.evaluator import Outcome, Rung
from pruner_zero.files import CHECKSUM, append_line, is_intact, read_lines, with_checksum
from pruner_zero.journal import JOURNAL as JOURNAL
from pruner_zero.journal import changed
from pruner_zero.metric.grammar import parse

_FORMAT = 3


@dataclass(frozen=True)
class Record:
    """A candidate with its evaluation and the canonical form by which it was compared."""

    candidate: Candidate
    evaluation: Evaluation
    canonical: str

    def to_json(self) -> dict[str, Any]:
        """The record as a line of the journal."""
        candidate, evaluation = self.candidate, self.evaluation
        return {
            "kind": "candidate",
            **{name: getattr(candidate, name) for name in Candidate.__dataclass_fields__},
            "expression": str(candidate.expression),
            "parents": list(candidate.parents),
            "canonical": self.canonical,
            **vars(evaluation),
            "value": evaluation.value if evaluation.rung else None,
            "seconds": round(evaluation.seconds, 4),
        }

    @classmethod
    def from_json(cls, line: dict[str, Any]) -> "Record":
        """Read back what `to_json` wrote."""
        scope, parents = cast(Group, line["scope"]), tuple(line["parents"])
        expression, number = parse(line["expression"]), line["number"]
        candidate = Candidate(number, expression, scope, parents, line["operation"])
        fields = {name: line[name] for name in Evaluation.__dataclass_fields__}
        if line["value"] is None:
            fields["value"] = math.inf
        return cls(candidate, Evaluation(**fields), line["canonical"])


class SearchJournal:
    """The journal of the search in `folder`, read and verified once.

    Its first line holds the settings. For every batch follow a hash of its candidates, the outcome
    of every rung, the record of every candidate, and a line that ends the batch; a last line ends
    the search. Raises PrunerZeroError naming the first line that does not match its checksum, and
    for a search of another version.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / JOURNAL
        self.lines = read_lines(self.path)
        # The journal of other work starts with another line.
        if self.lines and not {"kind", CHECKSUM} & self.lines[0].keys():
            raise PrunerZeroError(f"{folder} holds no search: give the folder that search wrote")
        for number, line in enumerate(self.lines, 1):
            if not is_intact(line):
                raise PrunerZeroError(
                    f"line {number} of {self.path} is damaged: restore the file, or delete that "
                    "line and all after it, whose work is then done again"
                )
        if self.lines and self.lines[0].get("format", _FORMAT) != _FORMAT:
            raise PrunerZeroError(
                f"{folder} holds a search that another version of pruner-zero wrote: read it with "
                "that version, or search anew in another folder"
            )

    @property
    def settings(self) -> dict[str, Any]:
        """What identifies the search: its settings and hashes of the model and the texts."""
        return dict(self.lines[0]["settings"])

    @cached_property
    def records(self) -> tuple[Record, ...]:
        """All records, in the order of their numbers. Raises PrunerZeroError where one misses."""
        records = tuple(Record.from_json(line) for line in self._of("candidate"))
        for number, record in enumerate(records):
            if record.candidate.number != number:
                raise PrunerZeroError(
                    f"{self.path} lacks the line of candidate {number}: restore it, or delete "
                    f"the line of candidate {record.candidate.number} and all after it, whose work "
                    "is then done again"
                )
        return records

    @cached_property
    def outcomes(self) -> tuple[Outcome, ...]:
        """The outcome of every judgement of a candidate on a rung."""
        return tuple(Outcome.from_json(line) for line in self._of("outcome"))

    @property
    def batches(self) -> list[tuple[int, float]]:
        """After each batch, the number of candidates and the seconds since the search began."""
        candidates = accumulate(line["kind"] == "candidate" for line in self.lines)
        pairs = zip(candidates, self.lines, strict=True)
        return [(n, float(line["elapsed"])) for n, line in pairs if line["kind"] == "batch"]

    @property
    def avoided(self) -> dict[str, int]:
        """How many proposals were dropped without being asked, by the reason."""
        return dict([{}, *self._of("batch")][-1].get("avoided", {}))

    @property
    def asked(self) -> list[tuple[str, int]]:
        """A hash of the candidates of every batch that was begun, and their number."""
        return [(line["candidates"], line["count"]) for line in self._of("asked")]

    @property
    def ended(self) -> bool:
        """Whether the search ended, its final race included, and no batch was begun since."""
        return bool(self.lines) and self.lines[-1]["kind"] == "end"

    @property
    def finalists(self) -> tuple[int, ...] | None:
        """The numbers of the candidates of the last finished final race; None before any."""
        ends = self._of("end")
        return tuple(ends[-1]["finalists"]) if ends else None

    def append(self, line: Mapping[str, Any]) -> None:
        """Add one line and wait until it is on disk. Records and outcomes remain those read."""
        written = with_checksum(line)
        append_line(self.path, written)
        self.lines.append(written)

    def _of(self, event: str) -> list[dict[str, Any]]:
        return [line for line in self.lines if line["kind"] == event]


class Archive:
    """The state of a search under `folder`: its records, and outcomes that are in no record yet.

    Seed and budget decide the order of the journal's lines, the workers do not. A resumed search
    asks for everything again from the beginning, takes from the journal the outcomes that it holds,
    and does not write a line twice. Raises PrunerZeroError where the journal belongs to other
    settings or is damaged.
    """

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self.records: list[Record] = []
        self.batches = 0
        self.journal = journal = SearchJournal(folder)
        if journal.lines and journal.lines[0].get("settings") != settings:
            if journal.outcomes:
                stored = journal.lines[0].get("settings", {})
                if surplus := sorted(stored.keys() - settings.keys()):
                    raise PrunerZeroError(
                        f"{folder} holds a search of another version of pruner-zero, which had the "
                        f"setting '{surplus[0]}': search anew in another folder"
                    )
                names = changed(stored, settings)
                raise PrunerZeroError(
                    f"{folder} holds a run of other settings ({names} changed): choose another "
                    "folder or the same settings"
                )
            # That run ended before its first outcome, so there is nothing to lose.
            journal.path.unlink()
            self.journal = journal = SearchJournal(folder)
        if not journal.lines:
            journal.append({"kind": "run", "format": _FORMAT, "settings": settings})
        self._outcomes = {(outcome.number, outcome.rung): outcome for outcome in journal.outcomes}
        self._written = len(journal.records)
        self._batches_written = len(journal.batches)
        self.elapsed = journal.batches[-1][1] if journal.batches else 0.0
        self._first: dict[tuple[str, Group], int] = {}

    @property
    def replaying(self) -> bool:
        """Whether batches that an earlier process judged are still to be told."""
        return self.batches < self._batches_written

    @property
    def begun(self) -> int | None:
        """The size of the next batch, where an earlier process began it with its own budget."""
        known = self.journal.asked
        return known[self.batches][1] if self.batches < len(known) else None

    def begin(self, batch: Sequence[Candidate]) -> None:
        """Note which candidates are judged next.

        Raises PrunerZeroError where an earlier process judged other candidates here, whose outcomes
        would be taken for these.
        """
        asked = [[str(candidate.expression), candidate.scope] for candidate in batch]
        digest = sha256(json.dumps(asked).encode()).hexdigest()[:24]
        known = self.journal.asked
        if self.batches < len(known):
            if known[self.batches][0] != digest:
                raise PrunerZeroError(
                    f"batch {self.batches + 1} in {self.journal.path.parent} had other "
                    "candidates: a file of --seed-metrics or a version changed; choose "
                    "another folder for a new search"
                )
            return
        self.journal.append({"kind": "asked", "candidates": digest, "count": len(batch)})

    def end(self, finalists: Sequence[int] = ()) -> None:
        """Note that the search ended with these finalists, unless the last line says so."""
        if not self.journal.ended or self.journal.finalists != tuple(finalists):
            self.journal.append({"kind": "end", "finalists": list(finalists)})

    def outcome(self, number: int, rung: Rung) -> Outcome | None:
        """The outcome of a judgement, by this process or an earlier one; None before it."""
        return self._outcomes.get((number, rung))

    def remember(self, outcome: Outcome) -> None:
        """Write one outcome to the journal, unless it is there."""
        if (outcome.number, outcome.rung) not in self._outcomes:
            self._outcomes[outcome.number, outcome.rung] = outcome
            self.journal.append({"kind": "outcome", **outcome.to_json()})

    @property
    def outcomes(self) -> list[Outcome]:
        """The outcome of every judgement, those of earlier processes first."""
        return list(self._outcomes.values())

    def first(self, canonical: str, candidate: Candidate) -> int | None:
        """The number of the earlier candidate with this canonical form and scope; None if none."""
        first = self._first.setdefault((canonical, candidate.scope), candidate.number)
        return first if first != candidate.number else None

    def commit(
        self, records: Sequence[Record], elapsed: float, avoided: Mapping[str, int] = {}
    ) -> None:
        """Add a whole batch; elapsed: seconds since the search began, over all its processes.

        avoided: the proposals dropped so far without being asked, by the reason.
        """
        for record in records:
            if len(self.records) >= self._written:
                self.journal.append(record.to_json())
            self.records.append(record)
        self.batches += 1
        if self.batches > self._batches_written:
            line = {"kind": "batch", "elapsed": round(elapsed, 2), "avoided": dict(avoided)}
            self.journal.append(line)
            self.elapsed = elapsed

    def distinct(self) -> Iterator[Record]:
        """The records with a result of their own, in the order of their numbers."""
        return (record for record in self.records if record.evaluation.counts)
