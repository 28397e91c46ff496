"""The model under a candidate's masks: put on in place, measured, taken off."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pruner_zero.metric import Expression
from pruner_zero.models import Matrix, next_token_loss
from pruner_zero.search.masking import choose_masks
from pruner_zero.sparsity import Pattern, Scope


@dataclass(frozen=True)
class MaskedModel:
    """A model whose matrices can be masked by any metric, its dense weights kept beside.

    dense: by parameter name, in any dtype; scores and masks come from them, while `model`
    may be of another dtype, in which the losses are computed.
    statistics: by matrix name, the terminals G (out, in), X and H (1, in), fp32.
    """

    model: nn.Module
    matrices: Sequence[Matrix]
    dense: dict[str, Tensor]
    statistics: dict[str, dict[str, Tensor]]
    pattern: Pattern

    def terminals(self, matrix: Matrix) -> dict[str, Tensor]:
        """All terminals of one matrix, W and S from the dense weights, fp32."""
        weight = matrix.view(self.dense[matrix.parameter_name]).float()
        return {"W": weight.abs(), "S": weight, **self.statistics[matrix.name]}

    @contextmanager
    def masked(self, expression: Expression, scope: Scope) -> Iterator[nn.Module]:
        """The model with the weights zeroed that `expression` ranks lowest within `scope`.

        Exact, as `prune` masks. The dense weights are back afterwards. Raises ScoreError.
        """
        try:
            with torch.no_grad():
                for matrix, mask in zip(self.matrices, self.masks(expression, scope), strict=True):
                    matrix.weight.masked_fill_(~mask, 0)
            yield self.model
        finally:
            with torch.no_grad():
                for matrix in self.matrices:
                    matrix.weight.copy_(matrix.view(self.dense[matrix.parameter_name]))

    def masks(self, expression: Expression, scope: Scope) -> Iterator[Tensor]:
        """The masks (out, in) of all matrices, True = kept, in order. Raises ScoreError."""
        terminals = map(self.terminals, self.matrices)
        names = [matrix.name for matrix in self.matrices]
        return choose_masks(terminals, expression, scope, self.pattern, names)

    @torch.no_grad()
    def losses(self, expression: Expression, scope: Scope, windows: Tensor) -> list[float]:
        """The pruned model's mean next-token loss on each of `windows` (n, tokens), in nats."""
        with self.masked(expression, scope) as model:
            return [float(next_token_loss(model, window[None])) for window in windows]
