"""Judging candidates on several models at once: what they lose of what Wanda's mask loses."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pruner_zero.choices import Group
from pruner_zero.errors import PrunerZeroError
from pruner_zero.evolution.evaluator import Evaluator, Judge, Task
from pruner_zero.journal import Journal
from pruner_zero.metric.expression import Expression
from pruner_zero.metric.metric import Metric
from pruner_zero.models.next_token import next_token_losses
from pruner_zero.progress import track

# The metric whose mask every model's divergence is relative to.
_REFERENCE = "wanda"
# The least divergence that others are a share of: in nats, and in its own standard errors.
_LEAST, _LEAST_ERRORS = 1e-3, 4.0
# A candidate leaves a model behind where it is behind the best by this many standard deviations of
# what other candidates gained on the models after it; as many of these as `_ENOUGH` are needed.
_BEHIND, _ENOUGH = 2.0, 4


def _split(values: Sequence[float], count: int) -> list[Sequence[float]]:
    """The values in `count` equal parts, in their order: those of each model."""
    each = len(values) // count
    return [values[each * number : each * (number + 1)] for number in range(count)]


@dataclass(frozen=True)
class Models:
    """The models that candidates are judged on, by name, and how their parts become a fitness.

    A part is a share of the divergence of Wanda's mask, so that models count alike. The margins of
    the race and of the tuned exponents (`racing`, `tuning`), which were measured in nats on one
    model (benchmarks/decisions.md), hold for these shares without having been measured for them.

    The fitness of a candidate is the mean of its parts.
    """

    names: tuple[str, ...]

    @classmethod
    def named(cls, names: Sequence[str]) -> "Models":
        """Models by the last parts of their names, numbered where two are equal."""
        short = [Path(name).name or name for name in names]
        unique = [
            name if short.count(name) == 1 else f"{name} ({number})"
            for number, name in enumerate(short, 1)
        ]
        return cls(tuple(unique))

    def parts(self, losses: Sequence[float]) -> dict[str, float]:
        """The mean of each model's losses, of which every model has as many, by its name."""
        means = map(statistics.mean, _split(losses, len(self.names)))
        return dict(zip(self.names, means, strict=True))

    def error(self, values: Sequence[float]) -> float:
        """The standard error of the mean over models of a value a window; 0 where it is unknown."""
        of_models = _split(values, len(self.names))
        if len(of_models[0]) < 2:
            return 0.0
        squares = [statistics.variance(each) / len(each) for each in of_models]
        return math.sqrt(sum(squares)) / len(squares)

    def slack(self, judged: Sequence[Sequence[float]]) -> tuple[float, ...]:
        """By how much a candidate may be behind the best after 1, 2, … models and still win.

        judged: the losses of candidates on all windows of all models. Infinite for too few.
        """
        if len(judged) < _ENOUGH:
            return (math.inf,) * (len(self.names) - 1)
        parts = [list(self.parts(losses).values()) for losses in judged]
        return tuple(
            _BEHIND
            * statistics.stdev(statistics.mean(of) - statistics.mean(of[:count]) for of in parts)
            for count in range(1, len(self.names))
        )


@dataclass(frozen=True)
class Reference:
    """Of one model: the losses of the reference's mask and the divergence that it costs.

    error: its closed-form error. losses, fresh: by window of the search text, nats.
    divergence: the mean loss more than that of the dense model, for either.
    """

    error: float
    losses: tuple[float, ...]
    fresh: tuple[float, ...]
    divergence: tuple[float, float]

    @classmethod
    @torch.no_grad()
    def of(cls, evaluator: Evaluator, scope: Group, name: str) -> "Reference":
        """Measure it with the windows of `evaluator`, of the model of this name.

        Raises PrunerZeroError where the divergence does not stand out from its error, as on text
        that is unlike the model's: shares of it would mean nothing.
        """
        expression, measured, apart = Metric.of(_REFERENCE).expression, [], []
        for windows in (evaluator.windows, evaluator.fresh):
            losses = evaluator.masked.losses(expression, scope, windows)
            each = track(windows, "losses of the dense model", len(windows))
            dense = [float(next_token_losses(evaluator.masked.model, w[None])) for w in each]
            measured.append(tuple(losses))
            apart.append(_divergence(losses, dense, name) if losses else 1.0)
        error = evaluator.reconstruction(expression, scope)
        return cls(error, measured[0], measured[1], (apart[0], apart[1]))

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Reference":
        """Read back its fields."""
        losses, fresh = tuple(value["losses"]), tuple(value["fresh"])
        return cls(value["error"], losses, fresh, tuple(value["divergence"]))

    def relative(self, losses: Sequence[float], first: int, fresh: bool) -> list[float]:
        """The `losses` on the windows from `first` on, as shares of the reference's divergence.

        0 is as much as the reference loses, −0.1 a tenth less of its divergence.
        """
        compared, divergence = self.fresh if fresh else self.losses, self.divergence[fresh]
        pairs = zip(losses, compared[first:], strict=False)
        return [(loss - other) / divergence for loss, other in pairs]


def _divergence(losses: Sequence[float], dense: Sequence[float], name: str) -> float:
    more = [loss - of_dense for loss, of_dense in zip(losses, dense, strict=True)]
    mean = statistics.mean(losses) - statistics.mean(dense)
    error = statistics.stdev(more) / math.sqrt(len(more)) if len(more) > 1 else 0.0
    if mean < max(_LEAST, _LEAST_ERRORS * error):
        raise PrunerZeroError(
            f"Wanda's mask changes the loss of {name} on the search text by {mean:.4f} ± "
            f"{error:.4f} nats, too little to compare metrics of several models by: judge them on "
            "text that each model writes (leave out --calibration and --search-text), or choose "
            "more --search-windows and --final-windows, or more zeros"
        )
    return mean


@dataclass(frozen=True)
class SeveralModels(Judge):
    """The work of a search's workers for several models, of which all are in memory.

    evaluators, references: of the models, in their order, the smallest first. The rung "few" is
    that of the first model alone; on "all" and "final" a candidate's losses are those of the first
    model, then those of the second, all of them relative.
    """

    models: Models
    evaluators: Sequence[Evaluator]
    references: Sequence[Reference]

    def set_up(self) -> None:
        """Give a worker its own copy of the parameters that it masks; the rest is shared."""
        for evaluator in self.evaluators:
            evaluator.set_up()

    def judge(self, task: Task, expression: Expression) -> dict[str, Any]:
        """The fields of the outcome; `parts` has the value of each model."""
        pairs = list(zip(self.evaluators, self.references, strict=True))
        if task.rung == "reconstruction":
            errors = [
                each.reconstruction(expression, task.scope) - reference.error
                for each, reference in pairs
            ]
            return {"value": statistics.mean(errors)}
        losses, each = list(task.known), 0
        for count, (evaluator, reference) in enumerate(pairs, 1):
            windows = evaluator.windows_of(task.rung)
            each, first = len(windows), len(losses) - each * (count - 1)
            if first < each:
                found = evaluator.masked.losses(expression, task.scope, windows[first:])
                losses += reference.relative(found, first, task.rung == "final")
            if not all(map(math.isfinite, losses)):
                return {"reason": "the loss of the pruned model is not finite"}
            if task.rung == "few":
                return {"value": statistics.mean(losses), "losses": tuple(losses)}
            if count < len(pairs) and self._is_lost(losses, count, task):
                return {"losses": tuple(losses)}
        parts = self.models.parts(losses)
        value = statistics.mean([*parts.values()])
        return {"value": value, "losses": tuple(losses), "parts": parts}

    def _is_lost(self, losses: Sequence[float], count: int, task: Task) -> bool:
        """Whether a candidate that was judged on `count` models can hardly become the best."""
        if not task.best or not task.slack:
            return False
        so_far, best = (
            statistics.mean([statistics.mean(each) for each in _split(of, count)])
            for of in (losses, task.best[: len(losses)])
        )
        return so_far - best > task.slack[count - 1]


def judge_several(
    models: Models, evaluators: Sequence[Evaluator], scope: Group, journal: Journal | None = None
) -> SeveralModels:
    """The judge of all `evaluators`.

    scope: the comparison group of the reference. journal: where references are kept, which take
    minutes with large models, and read from. Raises what `Reference.of` raises.
    """
    references = [Reference.from_json(line) for line in journal.lines] if journal else []
    done = len(references)
    for name, evaluator in list(zip(models.names, evaluators, strict=True))[done:]:
        references.append(Reference.of(evaluator, scope, name))
        if journal:
            journal.append(vars(references[-1]), {})
    return SeveralModels(models, evaluators, references)
