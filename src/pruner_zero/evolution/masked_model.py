"""The model pruned by a candidate: put on in place, measured, taken off."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from pruner_zero.evolution.masking import choose_masks
from pruner_zero.execution import UNLIMITED, TimeLimit
from pruner_zero.metric import Expression
from pruner_zero.models import Matrix, next_token_loss
from pruner_zero.sparsity import Pattern, Scope, exact_update, sparsegpt

Update = Literal["none", "obs", "exact"]


@dataclass(frozen=True)
class MaskedModel:
    """A model whose matrices can be masked by any metric, its dense weights kept beside.

    dense: by parameter name, in any dtype; scores and masks come from them, while `model`
    may be of another dtype, in which the losses are computed.
    statistics: by matrix name, the terminals G (out, in), X and D (1, in), fp32.
    update: how the weights that stay make up for the others, as in `prune` where all
    statistics are the dense model's; grams: by matrix name, XᵀX (in, in), fp32, of the matrices
    that are updated. One that calibration never reached has nothing to be corrected by.
    """

    model: nn.Module
    matrices: Sequence[Matrix]
    dense: dict[str, Tensor]
    statistics: dict[str, dict[str, Tensor]]
    pattern: Pattern
    update: Update = "none"
    grams: Mapping[str, Tensor] = field(default_factory=dict)
    damping: float = 0.01

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    def terminals(self, matrix: Matrix) -> dict[str, Tensor]:
        """All terminals of one matrix, W and S from the dense weights, fp32."""
        weight = matrix.view(self.dense[matrix.parameter_name]).float()
        return {"W": weight.abs(), "S": weight, **self.statistics[matrix.name]}

    @contextmanager
    def masked(
        self,
        expression: Expression,
        scope: Scope,
        limit: TimeLimit = UNLIMITED,
    ) -> Iterator[nn.Module]:
        """The model with the weights zeroed that `expression` ranks lowest within `scope`.

        Exact, as `prune` masks and updates. The dense weights are back afterwards. Raises
        ScoreError, and PrunerZeroError where an update cannot be solved for or over the limit.
        """
        try:
            with torch.no_grad():
                masks = self.masks(expression, scope, limit)
                for matrix, mask in zip(self.matrices, limit.steps(masks), strict=True):
                    self._prune(matrix, mask)
            yield self.model
        finally:
            with torch.no_grad():
                for matrix in self.matrices:
                    matrix.weight.copy_(matrix.view(self.dense[matrix.parameter_name]))

    def _prune(self, matrix: Matrix, mask: Tensor) -> None:
        """Write what `mask` (out, in) and the update leave of one matrix into the model."""
        name, damping = matrix.name, self.damping
        dense, gram = matrix.view(self.dense[matrix.parameter_name]), self.grams.get(name)
        if gram is None:
            matrix.weight.masked_fill_(~mask, 0)
        elif self.update == "exact":
            solved = exact_update(dense, gram, mask, damping=damping, name=name)
            matrix.weight.copy_(solved.weight)
        else:
            swept = sparsegpt(dense, gram, self.pattern, mask=mask, damping=damping, name=name)
            matrix.weight.copy_(swept.weight)

    def masks(
        self,
        expression: Expression,
        scope: Scope,
        limit: TimeLimit = UNLIMITED,
    ) -> Iterator[Tensor]:
        """The masks (out, in) of all matrices, True = kept, in order. Raises ScoreError."""
        terminals = map(self.terminals, limit.steps(self.matrices))
        names = [matrix.name for matrix in self.matrices]
        return choose_masks(terminals, expression, scope, self.pattern, names)

    @torch.no_grad()
    def losses(
        self,
        expression: Expression,
        scope: Scope,
        windows: Tensor,
        limit: TimeLimit = UNLIMITED,
    ) -> list[float]:
        """The pruned model's mean next-token loss on each of `windows` (n, tokens), in nats."""
        with self.masked(expression, scope, limit) as model:
            return [float(next_token_loss(model, window[None])) for window in limit.steps(windows)]
