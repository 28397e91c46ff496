"""Judging one candidate on one rung: from milliseconds on a few rows to the whole search text."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from pruner_zero.errors import PrunerZeroError
from pruner_zero.evolution.candidate import Candidate
from pruner_zero.evolution.layout import Layout
from pruner_zero.evolution.masked_model import MaskedModel
from pruner_zero.evolution.masking import Moved, Shares, pruned_shares
from pruner_zero.evolution.row_sample import SampledMatrix, closed_form_error, sampled_masks
from pruner_zero.evolution.time_limit import UNLIMITED, TimeLimit
from pruner_zero.metric import Expression, parse
from pruner_zero.sparsity import Allocation, Pattern, Scope

Rung = Literal["probe", "reconstruction", "few", "all"]

RUNGS: tuple[Rung, ...] = ("probe", "reconstruction", "few", "all")


@dataclass(frozen=True)
class Task:
    """One candidate on one rung, as it travels to a worker."""

    number: int
    rung: Rung
    expression: str
    scope: Scope
    offsets: tuple[float, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """What a rung says: a value (lower is better), or the reason of a rejection.

    fingerprint: the hash of the mask on the probe rows, from the probe rung alone.
    """

    number: int
    rung: Rung
    value: float | None = None
    reason: str | None = None
    fingerprint: str | None = None
    losses: tuple[float, ...] = ()
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """The fields that say something, as JSON values."""
        values = {**vars(self), "losses": list(self.losses)}
        return {key: value for key, value in values.items() if value not in (None, [])}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Outcome":
        """Read back what `to_json` wrote."""
        fields = {key: value[key] for key in vars(cls(0, "probe")) if key in value}
        return cls(**{**fields, "losses": tuple(value.get("losses", ()))})


@dataclass(frozen=True)
class Evaluator:
    """All that judging takes, the same for every candidate: data in memory, no state.

    probe: a few rows of some matrices, for fingerprints. sample: rows of all matrices, for
    the closed-form error. masked: the model. windows: (n, tokens) of the search text, of
    which the rung "few" sees the first `few`. allocation: how much of each matrix is pruned
    by every candidate; where None, what its offsets say, if it has any. time_limit: seconds after
    which a candidate is rejected, looked at between matrices and windows: for where nobody beside
    it could stop it.
    """

    probe: Sequence[SampledMatrix]
    sample: Sequence[SampledMatrix]
    masked: MaskedModel
    windows: Tensor
    few: int
    pattern: Pattern
    allocation: Allocation | None = None
    time_limit: float = math.inf

    @cached_property
    def layout(self) -> Layout:
        """What offsets stand for in this model."""
        return Layout.of(self.masked.matrices)

    def allocation_of(self, candidate: Candidate) -> Allocation | None:
        """How much of each matrix a candidate with offsets prunes; None for one without."""
        if not candidate.offsets:
            return None
        start = None
        if candidate.scope == "global":
            names = [matrix.name for matrix in self.masked.matrices]
            start = pruned_shares(names, self.masked.masks(candidate.expression, "global"))
        return self.layout.allocation(candidate.offsets, self.pattern.sparsity, start)

    def run(self, task: Task) -> Outcome:
        """Judge one candidate on one rung; a metric that fails is rejected with its reason."""
        limit = TimeLimit(self.time_limit)
        expression = parse(task.expression)
        try:
            with torch.no_grad():
                found = self._judge(task, expression, limit)
        except PrunerZeroError as error:
            found = {"reason": getattr(error, "reason", str(error))}
        except (MemoryError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and "memory" not in str(error).lower():
                raise
            found = {"reason": "out of memory"}
        seconds = round(time.monotonic() - limit.since, 4)
        return Outcome(task.number, task.rung, seconds=seconds, **found)

    def _judge(self, task: Task, expression: Expression, limit: TimeLimit) -> dict[str, Any]:
        rung, scope, shares = task.rung, task.scope, self._shares(task)
        if rung == "probe":
            return {"fingerprint": self.fingerprint(expression, scope, shares, limit)}
        if rung == "reconstruction":
            return {"value": self.reconstruction(expression, scope, shares, limit)}
        windows = self.windows[: self.few] if rung == "few" else self.windows
        losses = self.masked.losses(expression, scope, windows, shares, limit)
        mean = sum(losses) / len(losses)
        if not np.isfinite(mean):
            return {"reason": "the loss of the pruned model is not finite"}
        return {"value": mean, "losses": tuple(losses)}

    def _shares(self, task: Task) -> Shares | Moved | None:
        layout, offsets, sparsity = self.layout, task.offsets, self.pattern.sparsity
        if self.allocation is not None:
            return layout.shares(self.allocation, sparsity, task.scope)
        if not offsets:
            return None
        if task.scope != "global":
            return layout.shares(layout.allocation(offsets, sparsity), sparsity, task.scope)

        def moved(own: Shares) -> Shares:
            return layout.shares(layout.allocation(offsets, sparsity, own), sparsity, "matrix")

        return moved

    def fingerprint(
        self,
        expression: Expression,
        scope: Scope,
        shares: Shares | Moved | None = None,
        limit: TimeLimit = UNLIMITED,
    ) -> str:
        """A hash of the masks on the probe rows: equal where two metrics prune the same there."""
        masks = sampled_masks(self.probe, expression, scope, self.pattern, shares, limit)
        bits = np.packbits(torch.cat([mask.flatten() for mask in masks]).cpu().numpy())
        return sha256(bits.tobytes()).hexdigest()[:24]

    def reconstruction(
        self,
        expression: Expression,
        scope: Scope,
        shares: Shares | Moved | None = None,
        limit: TimeLimit = UNLIMITED,
    ) -> float:
        """The closed-form error on the sampled rows; shares: as in `choose_masks`."""
        masks = sampled_masks(self.sample, expression, scope, self.pattern, shares, limit)
        return closed_form_error(self.sample, masks)
