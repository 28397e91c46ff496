"""Judgements of candidates, recorded once and replayed, on a clock of fixed costs.

A table holds, for every candidate that any search over it has judged, its closed-form error and its
loss by window. An algorithm that asks for a recorded judgement
gets it at once, and its clock advances by what the judgement costs; a judgement that is missing is
made and added. So the same search gives the same result on any machine and beside any other work.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pruner_zero.evolution.evaluator import RUNGS, Evaluator, Outcome, Task, is_behind
from pruner_zero.files import append_line, read_lines, write_atomic

# The windows of a table, by the rung that runs on them.
_SERIES = {"few": "search", "all": "search", "final": "final"}


@dataclass(frozen=True)
class Costs:
    """Seconds of the processor, one thread, that judgements of a candidate take on one model.

    closed_form: the error on the sampled rows. masks: masking the model and removing the masks.
    window: one forward pass.
    """

    closed_form: float
    masks: float
    window: float


def measure_costs(evaluator: Evaluator) -> Costs:
    """The costs on this machine, by one candidate on every rung."""
    seconds = {rung: evaluator.run(Task(0, rung, "W * X", "row")).seconds for rung in RUNGS}
    few, every = evaluator.few, len(evaluator.windows)
    window = (seconds["all"] - seconds["few"]) / max(1, every - few)
    masks = max(0.0, seconds["few"] - few * window)
    return Costs(seconds["reconstruction"], masks, window)


@dataclass
class Clock:
    """Seconds that judgements have cost so far; stands in for the module `time`."""

    seconds: float = 0.0

    def monotonic(self) -> float:
        """The seconds so far."""
        return self.seconds


class Table:
    """Judgements by candidate: a file of one line each, and a file of one line a judgement.

    whole: the first, which `pack` writes. added: the second, to which several processes append. A
    judgement is an error, losses by window, or the reason why there is none.
    """

    def __init__(self, whole: Path, added: Path) -> None:
        self.whole, self.added = whole, added
        self.header: dict[str, Any] = {}
        self._judgements: dict[tuple[str, str], dict[str, Any]] = {}
        self.refresh()

    def refresh(self) -> None:
        """Read both files, of which another process may have written either."""
        for file in (self.whole, self.added):
            for line in read_lines(file):
                self._take(line)

    def find(self, expression: str, scope: str, what: str) -> Any:
        """A judgement, None where there is none; what: a rung, or a series of windows."""
        return self._judgements.get((expression, scope), {}).get(what)

    def add(self, line: Mapping[str, Any]) -> None:
        """Record the header, or judgements of one candidate."""
        self._take(dict(line))
        self.added.parent.mkdir(parents=True, exist_ok=True)
        append_line(self.added, line)

    def pack(self) -> None:
        """Write one line for the header and for each candidate, sorted by expression."""
        lines = [self.header] if self.header else []
        for (expression, scope), judgements in sorted(self._judgements.items()):
            lines.append({"expression": expression, "scope": scope, **judgements})
        text = "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines)
        write_atomic(self.whole, text)

    def _take(self, line: dict[str, Any]) -> None:
        if "expression" not in line:
            self.header = line
            return
        known = self._judgements.setdefault((line.pop("expression"), line.pop("scope")), {})
        for what, judgement in line.items():
            earlier = known.get(what)
            if isinstance(earlier, list) and isinstance(judgement, list):
                judgement = max(earlier, judgement, key=len)
            known[what] = judgement


class Recorded:
    """An executor that takes judgements from a table, and makes those that it lacks.

    evaluator: called where a judgement is missing. windows: how many each rung has.
    """

    def __init__(
        self,
        evaluator: Callable[[], Evaluator],
        table: Table,
        costs: Costs,
        windows: Mapping[str, int],
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
        """The outcome of the rung without windows."""
        known = self.table.find(task.expression, task.scope, task.rung)
        if known is None:
            known = self._make(task, task.rung, "value")
        values = known if isinstance(known, dict) else {"value": known}
        return Outcome(task.number, task.rung, seconds=self.costs.closed_form, **values)

    def _on_windows(self, task: Task) -> Outcome:
        """The outcome of a rung on windows, stopped where the evaluator stops it."""
        series = _SERIES[task.rung]
        known = self.table.find(task.expression, task.scope, series) or []
        if not isinstance(known, dict) and self._taken(task, known) is None:
            # What is recorded is not run again.
            longest = max(task.known, tuple(known), key=len)
            known = self._make(replace(task, known=longest), series, "losses")
        if isinstance(known, dict):
            seconds = self.costs.masks + self.costs.window
            return Outcome(task.number, task.rung, seconds=round(seconds, 4), **known)
        losses = self._taken(task, known)
        assert losses is not None
        run = len(losses) - len(task.known)
        seconds = round(self.costs.masks + run * self.costs.window, 4)
        whole = len(losses) == self.windows[task.rung]
        value = sum(losses) / len(losses) if whole else None
        return Outcome(task.number, task.rung, value=value, losses=losses, seconds=seconds)

    def _make(self, task: Task, what: str, field: str) -> Any:
        """Have a candidate judged, and record the `field` of the outcome, or the reason."""
        made = self.evaluator().run(task)
        judgement = {"reason": made.reason} if made.reason else getattr(made, field)
        self.table.add({"expression": task.expression, "scope": task.scope, what: judgement})
        return judgement

    def _taken(self, task: Task, losses: list[float]) -> tuple[float, ...] | None:
        """The losses as far as the evaluator would have run; None where there are fewer."""
        for count in range(len(task.known) + 1, self.windows[task.rung] + 1):
            if count > len(losses):
                return None
            if is_behind(losses[:count], task.best):
                return tuple(losses[:count])
        return tuple(losses[: self.windows[task.rung]])
