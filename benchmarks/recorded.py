"""Judgements of candidates, recorded once and replayed, on a clock of fixed costs.

A table holds, for every candidate that any search over it has judged, the fingerprint of its
mask, its closed-form error and its loss by window. An algorithm that asks for a recorded judgement
gets it at once, and its clock advances by what the judgement costs; a judgement that is missing is
made and added. So the same search gives the same result on any machine and beside any other work.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pruner_zero.evolution.evaluator import RUNGS, Evaluator, Outcome, Task, is_behind

# The windows of a table, by the rung that runs on them.
_SERIES = {"few": "search", "all": "search", "final": "final"}


@dataclass(frozen=True)
class Costs:
    """Seconds of the processor, one thread, that judgements of a candidate take on one model.

    probe: the fingerprint. closed_form: the error on the sampled rows. masks: masking the model and
    removing the masks. window: one forward pass.
    """

    probe: float
    closed_form: float
    masks: float
    window: float


def measure_costs(evaluator: Evaluator) -> Costs:
    """The costs on this machine, by one candidate on every rung."""
    seconds = {rung: evaluator.run(Task(0, rung, "W * X", "row")).seconds for rung in RUNGS}
    few, every = evaluator.few, len(evaluator.windows)
    window = (seconds["all"] - seconds["few"]) / max(1, every - few)
    masks = max(0.0, seconds["few"] - few * window)
    return Costs(seconds["probe"], seconds["reconstruction"], masks, window)


@dataclass
class Clock:
    """Seconds that judgements have cost so far; stands in for the module `time`."""

    seconds: float = 0.0

    def monotonic(self) -> float:
        """The seconds so far."""
        return self.seconds


class Table:
    """Judgements by candidate, in a file of one JSON line each, which several processes share."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._values: dict[tuple[str, str, str], dict[str, Any]] = {}
        self._read_bytes = 0
        self.refresh()

    def refresh(self) -> None:
        """Read the lines that other processes have added."""
        if not self.file.exists():
            return
        with self.file.open("rb") as stream:
            stream.seek(self._read_bytes)
            for line in stream:
                if not line.endswith(b"\n"):
                    break
                self._read_bytes += len(line)
                self._take(json.loads(line))

    def find(self, expression: str, scope: str, what: str) -> dict[str, Any]:
        """What is recorded of a candidate; what: a rung, or a series of windows."""
        return self._values.get((expression, scope, what), {})

    def add(self, expression: str, scope: str, what: str, **values: Any) -> None:
        """Record a judgement."""
        line = {"expression": expression, "scope": scope, "what": what, **values}
        self._take(line)
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with self.file.open("a") as stream:
            stream.write(json.dumps(line) + "\n")

    def _take(self, line: dict[str, Any]) -> None:
        key = line["expression"], line["scope"], line["what"]
        known = self._values.get(key, {})
        if "reason" in line or len(line.get("losses", ())) >= len(known.get("losses", ())):
            self._values[key] = line


class Recorded:
    """An executor that takes judgements from a table, and makes those that it lacks.

    evaluator: called where a judgement is missing.
    """

    def __init__(
        self,
        evaluator: Callable[[], Evaluator],
        table: Table,
        costs: Costs,
        windows: dict[str, int],
    ) -> None:
        self.evaluator = evaluator
        self.table = table
        self.costs = costs
        self.windows = windows
        self.clock = Clock()

    def map(self, tasks: Iterable[Task]) -> Iterator[Outcome]:
        """The outcome of every task; the clock advances by its cost."""
        for task in tasks:
            outcome = self._on_windows(task) if task.rung in _SERIES else self._closed(task)
            self.clock.seconds += outcome.seconds
            yield outcome

    def close(self) -> None:
        """Nothing to stop."""

    def _closed(self, task: Task) -> Outcome:
        """The outcome of a rung without windows."""
        if not (line := self.table.find(task.expression, task.scope, task.rung)):
            made = self.evaluator().run(task)
            values = {"value": made.value, "fingerprint": made.fingerprint, "reason": made.reason}
            values = {name: value for name, value in values.items() if value is not None}
            self.table.add(task.expression, task.scope, task.rung, **values)
            line = self.table.find(task.expression, task.scope, task.rung)
        costs = {"probe": self.costs.probe, "reconstruction": self.costs.closed_form}
        seconds = costs[task.rung]
        return Outcome.from_json(
            {**line, "number": task.number, "rung": task.rung, "seconds": seconds}
        )

    def _on_windows(self, task: Task) -> Outcome:
        """The outcome of a rung on windows, stopped where the evaluator stops it."""
        series = _SERIES[task.rung]
        line = self.table.find(task.expression, task.scope, series)
        losses = self._taken(task, line)
        if losses is None:
            # What is recorded is not run again.
            known = tuple(line.get("losses", task.known))
            made = self.evaluator().run(replace(task, known=known))
            values = {"reason": made.reason} if made.reason else {"losses": list(made.losses)}
            self.table.add(task.expression, task.scope, series, **values)
            line = self.table.find(task.expression, task.scope, series)
            losses = self._taken(task, line) or ()
        reason = line.get("reason")
        run = 1 if reason else len(losses) - len(task.known)
        seconds = round(self.costs.masks + run * self.costs.window, 4)
        if reason:
            return Outcome(task.number, task.rung, reason=reason, seconds=seconds)
        whole = len(losses) == self.windows[task.rung]
        value = sum(losses) / len(losses) if whole else None
        return Outcome(task.number, task.rung, value=value, losses=losses, seconds=seconds)

    def _taken(self, task: Task, line: dict[str, Any]) -> tuple[float, ...] | None:
        """The losses as far as the evaluator would have run; None where the table holds fewer."""
        if line.get("reason"):
            return ()
        stored = line.get("losses", [])
        for count in range(len(task.known) + 1, self.windows[task.rung] + 1):
            if count > len(stored):
                return None
            if is_behind(stored[:count], task.best):
                return tuple(stored[:count])
        return tuple(stored[: self.windows[task.rung]])
