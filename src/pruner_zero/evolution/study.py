"""A search as its folder holds it: what `search` returns, and what analyses and reports read."""

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from pruner_zero.errors import PrunerZeroError, one_line
from pruner_zero.evolution.final import FinalRace
from pruner_zero.evolution.hall_of_fame import (
    HallOfFame,
    complexity,
    metric_of,
    on_the_highest_rung,
)
from pruner_zero.evolution.record import Record, SearchJournal
from pruner_zero.evolution.several_models import Models
from pruner_zero.metric.grammar import ParseError
from pruner_zero.metric.metric import Metric
from pruner_zero.table import Tabular

RUN = "run.json"
# Why a search stopped that the user interrupted.
INTERRUPTED = "interrupted"
# What windows are used for.
_USES = ("calibration", "search", "final")
# The keys of a journal's first line other than settings as they were asked for.
_NOT_ASKED = {*(f"{use}_tokens" for use in _USES), "model_weights", "judge_dtype"}


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
        rows = []
        for record in self.records:
            line = record.to_json()
            del line["kind"]
            results = line.pop("results")
            rows.append({**line, "complexity": complexity(record.candidate.expression), **results})
        return rows


@dataclass(frozen=True, repr=False)
class Study(Tabular):
    """A search, finished or not, as its folder `path` held it when it was opened.

    settings: as asked, defaults filled in. records: every candidate, in order of submission.
    batches: for each finished batch, the candidates judged until then and the seconds since the
    run began. seconds: what each judgement took, by rung. avoided: proposals that were never
    judged, by the reason. windows: where the tokens come from, by their use (calibration,
    search, final). final_race: the best metrics on windows that no candidate had seen. ended:
    whether it ended, its final race included. provenance: versions and the machine. stopped: why
    the search ended, empty where it was opened from its folder. models: the models where they are
    several.
    """

    shown = HallOfFame.shown

    path: Path
    settings: Mapping[str, Any]
    records: tuple[Record, ...]
    batches: tuple[tuple[int, float], ...] = ()
    seconds: Mapping[str, Sequence[float]] = field(default_factory=dict)
    avoided: Mapping[str, int] = field(default_factory=dict)
    windows: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    final_race: FinalRace = field(default_factory=lambda: FinalRace(()))
    ended: bool = True
    provenance: Mapping[str, Any] = field(default_factory=dict)
    stopped: str = ""
    models: Models | None = None

    @classmethod
    def open(cls, folder: str | Path, stopped: str = "") -> "Study":
        """Read the search in `folder`. Raises PrunerZeroError where it is missing or damaged."""
        path = Path(folder)
        with reading(path):
            if not path.is_dir() or not (journal := SearchJournal(path)).lines:
                raise PrunerZeroError(f"{path} holds no search: give the folder that search wrote")
            run = read_json(path / RUN) if (path / RUN).is_file() else {}
            header = journal.settings.items()
            models = None
            if "models" in run:
                models = Models(tuple(run["models"]))
            asked = {name: value for name, value in header if name not in _NOT_ASKED}
            seconds: dict[str, list[float]] = defaultdict(list)
            for outcome in journal.outcomes:
                seconds[outcome.rung].append(outcome.seconds)
            return cls(
                path,
                dict(run.get("settings", asked)),
                journal.records,
                tuple(journal.batches),
                dict(seconds),
                journal.avoided,
                {name: dict(run[name]) for name in _USES if name in run},
                FinalRace.of(journal.records, journal.outcomes, journal.finalists, models),
                journal.ended,
                dict(run.get("provenance", {})),
                stopped,
                models,
            )

    @cached_property
    def judged(self) -> tuple[Record, ...]:
        """The distinct candidates on the highest rung that any reached: their values compare."""
        return tuple(on_the_highest_rung(self.records))

    @cached_property
    def hall_of_fame(self) -> HallOfFame:
        """The best metric of every complexity."""
        return HallOfFame.of(self.judged, self.final_race.choice, self.models)

    @property
    def candidates(self) -> Candidates:
        """Every candidate with its results, as a table."""
        return Candidates(self.records)

    @property
    def best(self) -> Metric:
        """The metric that the search chose. Raises PrunerZeroError if none works."""
        return metric_of(self.hall_of_fame.best)

    @property
    def knee(self) -> Metric:
        """The metric that gives most for its complexity. Raises PrunerZeroError if none works."""
        return metric_of(self.hall_of_fame.knee)

    @property
    def loss(self) -> float | None:
        """The loss of the best metric, on fresh windows where there was a final race.

        Of several models it is below 0 where the metric is better than Wanda's.
        """
        if self.final_race.winner:
            return self.final_race.winner.loss
        best = self.hall_of_fame.best
        return best.evaluation.value if best else None

    @property
    def prune_options(self) -> dict[str, Any]:
        """The settings of `prune` that the best metric needs.

        The metric as METRIC@SCOPE and the matrices, where they are not the defaults. A metric of
        units is applied to the units that it was judged by. Raises PrunerZeroError where no metric
        works.
        """
        best, asked = self.best, self.settings
        chosen = {"metric": f"{best.expression}@{best.scope}"}
        names = ["include", "exclude"]
        if asked.get("structure"):
            chosen["metric"] = str(best.expression)
            names += ["structure", "sparsity", "parameters"]
        return chosen | {name: asked[name] for name in names if asked.get(name)}

    @property
    def interrupted(self) -> bool:
        """Whether the user interrupted the search."""
        return self.stopped == INTERRUPTED

    @property
    def elapsed(self) -> float:
        """Seconds of the search until its last finished batch."""
        return self.batches[-1][1] if self.batches else 0.0

    def caption(self) -> str:
        """The folder, the number of candidates, how long the search took, and why it stopped."""
        stopped = f"; stopped, {self.stopped}" if self.stopped else ""
        minutes = f"{self.elapsed / 60:.1f} minutes"
        return f"{self.path}: {len(self.records)} candidates in {minutes}{stopped}"

    def to_rows(self) -> list[dict[str, Any]]:
        """The rows of the hall of fame."""
        return self.hall_of_fame.to_rows()


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn the errors that a damaged result raises when it is read into one about `path`."""
    try:
        yield
    except OSError as error:
        raise PrunerZeroError(f"{path} cannot be read: {error.strerror}") from error
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, ParseError) as error:
        reason = one_line(f"{type(error).__name__}: {error}", longest=120)
        raise PrunerZeroError(
            f"{path} is damaged or of another version ({reason}): restore it"
        ) from error


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises PrunerZeroError where it cannot be read or is none."""
    try:
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise PrunerZeroError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise PrunerZeroError(f"{path} is not valid JSON: restore the file") from error
    if not isinstance(value, dict):
        raise PrunerZeroError(f"{path} is damaged: it holds no object")
    return value
