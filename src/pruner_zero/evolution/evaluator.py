"""Judging one candidate on one rung: by a sample of rows, or by the loss of the masked model."""

import math
import statistics
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from pruner_zero.choices import Group
from pruner_zero.devices import is_out_of_memory
from pruner_zero.errors import PrunerZeroError
from pruner_zero.evolution.row_sample import (
    SampledMatrix,
    candidate_masks,
    closed_form_error,
    sampled_masks,
)
from pruner_zero.metric.expression import Expression
from pruner_zero.metric.grammar import parse
from pruner_zero.models.matrices import Matrix, parameters_of
from pruner_zero.models.next_token import next_token_losses
from pruner_zero.pruning.masks import reached_score
from pruner_zero.sparsity.hessian import Hessian
from pruner_zero.sparsity.least_squares import keep_columns
from pruner_zero.sparsity.pattern import Pattern
from pruner_zero.sparsity.update import Layer

# Tokens of a forward pass on a GPU, which a small model does not fill with one window.
_BATCH_TOKENS = 4096


@dataclass(frozen=True)
class MaskedModel:
    """A model whose matrices can be masked by any metric, its dense weights kept beside.

    dense: by parameter name, in any dtype; scores and masks come from them, while `model`
    may be of another dtype, in which the losses are computed.
    statistics: by matrix name, the terminals G (out, in), X and D (1, in), O (out, 1), fp32.
    hessians: by matrix name, of the input of each matrix whose kept columns are solved anew, where
    whole units go. A matrix that calibration never reached has none, and is masked alone.
    """

    model: nn.Module
    matrices: Sequence[Matrix]
    dense: dict[str, Tensor]
    statistics: dict[str, dict[str, Tensor]]
    pattern: Pattern
    hessians: Mapping[str, Hessian] = field(default_factory=dict)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    def terminals(self, matrix: Matrix) -> dict[str, Tensor]:
        """All terminals of one matrix, W and S from the dense weights, fp32."""
        weight = matrix.view(self.dense[matrix.parameter_name]).float()
        return {"W": weight.abs(), "S": weight, **self.statistics[matrix.name]}

    @contextmanager
    def masked(self, expression: Expression, scope: Group) -> Iterator[nn.Module]:
        """The model with the weights zeroed that `expression` ranks lowest within `scope`.

        Exact, as `prune` masks and updates. The dense weights are back afterwards. Raises
        ScoreError, and PrunerZeroError where a step fails.
        """
        try:
            with torch.no_grad():
                masks = self.masks(expression, scope)
                pairs = zip(self.matrices, masks, strict=True)
                for _, group in groupby(pairs, lambda pair: id(self.hessians.get(pair[0].name))):
                    for matrix, mask in group:
                        hessian = self.hessians.get(matrix.name)
                        self._prune(matrix, mask, hessian)
                    if hessian is not None:
                        hessian.forget()
            yield self.model
        finally:
            with torch.no_grad():
                for matrix in self.matrices:
                    matrix.weight.copy_(matrix.view(self.dense[matrix.parameter_name]))

    def _prune(self, matrix: Matrix, mask: Tensor, hessian: Hessian | None) -> None:
        """Write the result of `mask` (out, in) and the steps for one matrix into the model."""
        if hessian is not None:
            dense = matrix.view(self.dense[matrix.parameter_name])
            layer = Layer(dense.float(), hessian, self.pattern, mask, name=matrix.name)
            result = keep_columns(layer)
            mask = result.mask
            matrix.weight.copy_(result.weight)
        matrix.weight.masked_fill_(~mask, 0)

    def masks(self, expression: Expression, scope: Group) -> Iterator[Tensor]:
        """The masks (out, in) of all matrices, True = kept, in order. Raises ScoreError."""
        matrices = {matrix.name: matrix for matrix in self.matrices}
        return candidate_masks(
            self.pattern.with_scope(scope),
            {name: matrix.block for name, matrix in matrices.items()},
            lambda name: reached_score(expression, self.terminals(matrices[name])),
            lambda name: self.terminals(matrices[name])["W"],
        )

    @torch.no_grad()
    def losses(
        self,
        expression: Expression,
        scope: Group,
        windows: Tensor,
        enough: Callable[[Sequence[float]], bool] = lambda losses: False,
    ) -> list[float]:
        """The pruned model's mean next-token loss on each of `windows` (n, tokens), in nats.

        enough: whether the losses so far suffice, so that the other windows are left out. A CPU
        runs one window at a time; on a GPU several share a forward pass.
        """
        losses: list[float] = []
        batch = 1 if self.device.type == "cpu" else max(1, _BATCH_TOKENS // windows.shape[1])
        with self.masked(expression, scope) as model:
            for part in windows.split(batch) if len(windows) else ():
                losses += next_token_losses(model, part).tolist()
                if enough(losses):
                    break
        return losses


Rung = Literal["reconstruction", "few", "all", "final"]

# The rungs of every batch; the final race (`final.py`) follows the last batch.
RUNGS: tuple[Rung, ...] = ("reconstruction", "few", "all")

# A candidate behind the best by `_BEHIND` standard errors of their paired difference leaves the
# last rung, after at least `_LEAST_WINDOWS` windows. Four differences may be equal by chance, so
# the standard deviation is taken to be at least `_LEAST_DEVIATION`.
_BEHIND, _LEAST_WINDOWS, _LEAST_DEVIATION = 2.0, 4, 0.005


@dataclass(frozen=True)
class Task:
    """One candidate on one rung, as it is sent to a worker.

    known: its losses on the first windows of the rung, which are not run again. best: the losses
    of the best candidate so far on all windows; a candidate clearly behind it is stopped. slack:
    of several models, as `Models.slack` says.
    """

    number: int
    rung: Rung
    expression: str
    scope: Group
    known: tuple[float, ...] = ()
    best: tuple[float, ...] = ()
    slack: tuple[float, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """The result of a rung: a value (lower is better), or the reason of a rejection.

    A candidate that was stopped because it is behind the best has neither. losses: by window, those
    known before among them. parts: the value on each of several models, by name.
    """

    number: int
    rung: Rung
    value: float | None = None
    reason: str | None = None
    losses: tuple[float, ...] = ()
    parts: Mapping[str, float] = field(default_factory=dict)
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """The fields that are set, as JSON values."""
        values = {**vars(self), "losses": list(self.losses)}
        return {key: value for key, value in values.items() if value not in (None, [], {})}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Outcome":
        """Read back what `to_json` wrote."""
        fields = {key: value[key] for key in vars(cls(0, "final")) if key in value}
        return cls(**{**fields, "losses": tuple(value.get("losses", ()))})


class Judge(ABC):
    """The work of a search's workers: all data in memory that judging needs, for any candidate."""

    @abstractmethod
    def set_up(self) -> None:
        """Give a worker its own copy of the parameters that it masks; the rest is shared."""

    @abstractmethod
    def judge(self, task: Task, expression: Expression) -> dict[str, Any]:
        """The fields of the outcome of one candidate on one rung. Raises as `run` handles."""

    def run(self, task: Task) -> Outcome:
        """Judge one candidate on one rung; a metric that fails is rejected with its reason.

        Raises PrunerZeroError where memory runs out, which says nothing about the candidate.
        """
        start = time.monotonic()
        expression = parse(task.expression)
        try:
            with torch.no_grad():
                verdict = self.judge(task, expression)
        except PrunerZeroError as error:
            verdict = {"reason": str(error)}
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            raise PrunerZeroError(
                f"out of memory at candidate {task.number} ({expression} @{task.scope}): choose "
                "fewer --workers and go on with --resume, or start a search with a smaller --seqlen"
            ) from error
        seconds = round(time.monotonic() - start, 4)
        return Outcome(task.number, task.rung, seconds=seconds, **verdict)

    def reject(self, task: Task, reason: str) -> Outcome:
        """The outcome of a candidate that took too long, or whose worker died twice."""
        return Outcome(task.number, task.rung, reason=reason)


@dataclass(frozen=True)
class Evaluator(Judge):
    """The judge of one model.

    sample: rows of all matrices, for the closed-form error. masked: the model. windows: (n, tokens)
    of the search text; the rung "few" uses the first `few` of them. fresh: (n, tokens) of the same
    text for the rung "final".
    """

    sample: Sequence[SampledMatrix]
    masked: MaskedModel
    windows: Tensor
    few: int
    fresh: Tensor = field(default_factory=lambda: torch.empty(0, 0, dtype=torch.int64))

    def set_up(self) -> None:
        """Give a worker its own copy of the parameters that it masks; the rest is shared."""
        for parameter in parameters_of(self.masked.matrices).values():
            parameter.data = parameter.data.clone()

    def judge(self, task: Task, expression: Expression) -> dict[str, Any]:
        """The fields of the outcome: a value in nats, the logarithm of the closed-form error."""
        rung, scope = task.rung, task.scope
        if rung == "reconstruction":
            return {"value": self.reconstruction(expression, scope)}
        windows, known = self.windows_of(rung), task.known
        losses = self.masked.losses(
            expression,
            scope,
            windows[len(known) :],
            lambda losses: is_behind([*known, *losses], task.best),
        )
        losses = [*known, *losses]
        if not np.isfinite(losses).all():
            return {"reason": "the loss of the pruned model is not finite"}
        if len(losses) < len(windows):
            return {"losses": tuple(losses)}
        return {"value": sum(losses) / len(losses), "losses": tuple(losses)}

    def windows_of(self, rung: Rung) -> Tensor:
        """The windows (n, tokens) of a rung that has some."""
        return {"few": self.windows[: self.few], "all": self.windows, "final": self.fresh}[rung]

    def reconstruction(self, expression: Expression, scope: Group) -> float:
        """The closed-form error on the sampled rows."""
        masks = sampled_masks(self.sample, expression, scope, self.masked.pattern)
        return closed_form_error(self.sample, masks)


def is_behind(losses: Sequence[float], best: Sequence[float]) -> bool:
    """Whether `losses` are clearly above those of the best on the same windows, or not finite.

    Source: races by paired differences (Maron & Moore 1994, Hoeffding races; irace, 2016).
    """
    if not all(map(math.isfinite, losses)):
        return True
    if len(losses) < _LEAST_WINDOWS or len(best) < len(losses):
        return False
    differences = [loss - lowest for loss, lowest in zip(losses, best, strict=False)]
    deviation = max(_LEAST_DEVIATION, statistics.stdev(differences))
    return statistics.mean(differences) > _BEHIND * deviation / math.sqrt(len(differences))
