"""A search as people work with it in Python: open its folder, look, prune with what it found."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pruner_zero.analysis import Analysis, analyze
from pruner_zero.errors import PrunerZeroError
from pruner_zero.evolution import HallOfFame
from pruner_zero.evolution.archive import Record, SearchJournal
from pruner_zero.evolution.hall_of_fame import complexity, metric_of
from pruner_zero.evolution.run import prune_options
from pruner_zero.metric import Metric
from pruner_zero.report.read import SearchRun, read_result
from pruner_zero.report.report import report
from pruner_zero.table import Tabular


@dataclass(frozen=True, repr=False)
class Candidates(Tabular):
    """Every candidate of a search, a row each, in the order in which they were submitted."""

    shown = ("number", "expression", "scope", "operation", "rung", "value", "reason", "same_as")

    records: tuple[Record, ...]

    def caption(self) -> str:
        """How many there are."""
        return f"{len(self.records)} candidates"

    def to_rows(self) -> list[dict[str, Any]]:
        """The lines of the journal, with the complexity and the value on each rung beside."""
        return [_row(record) for record in self.records]


@dataclass(frozen=True, repr=False)
class Study(Tabular):
    """A search, finished or not, as its folder tells it. It does not change with the folder."""

    shown = HallOfFame.shown

    run: SearchRun

    @classmethod
    def open(cls, folder: str | Path) -> "Study":
        """The search in `folder`. Raises PrunerZeroError where there is none, or a damaged one."""
        path = Path(folder)
        result = read_result(path)
        if not isinstance(result, SearchRun):
            raise PrunerZeroError(f"{path} holds no search: give the folder that search wrote")
        return cls(result)

    @property
    def folder(self) -> Path:
        """Where it is."""
        return self.run.path

    @property
    def settings(self) -> Mapping[str, Any]:
        """What was asked, defaults filled in."""
        return self.run.settings

    @property
    def candidates(self) -> Candidates:
        """Every candidate with what became known of it."""
        return Candidates(self.run.records)

    @property
    def hall_of_fame(self) -> HallOfFame:
        """The best metric of every complexity."""
        return HallOfFame.of(self.run.records)

    @property
    def best(self) -> Metric:
        """The metric of the lowest loss, with its scope. Raises PrunerZeroError where none is."""
        return metric_of(self.hall_of_fame.best)

    @property
    def knee(self) -> Metric:
        """The one that gives most for its complexity. Raises PrunerZeroError where none is."""
        return metric_of(self.hall_of_fame.knee)

    @property
    def prune_options(self) -> dict[str, str]:
        """The keywords with which `prune` applies what was found: metric, update, allocation."""
        return prune_options(self.folder, self.settings)

    def analysis(self, top: float = 0.1) -> Analysis:
        """What the search teaches, as `pruner-zero analyze` tells it; see `analyze` for `top`."""
        journal = SearchJournal.of(self.folder)
        return analyze(self.run.records, top, journal.seconds, journal.avoided)

    def report(self, output: str | Path | None = None) -> Path:
        """Write the page about it, `report.html` in its folder where `output` is None."""
        return report(self.folder, output)

    def caption(self) -> str:
        """Where it is, how many candidates there are, and how long it took."""
        seconds = self.run.batches[-1][1] if self.run.batches else 0.0
        count = len(self.run.records)
        return f"{self.folder}: {count} candidates in {seconds / 60:.1f} minutes"

    def to_rows(self) -> list[dict[str, Any]]:
        """The rows of the hall of fame."""
        return self.hall_of_fame.to_rows()


def _row(record: Record) -> dict[str, Any]:
    line = record.to_json()
    del line["kind"]
    results = line.pop("results")
    return {**line, "complexity": complexity(record.candidate.expression), **results}
