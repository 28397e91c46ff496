"""The masks of a candidate, and a model on which they are applied in place and measured."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import groupby

import torch
from torch import Tensor, nn

from pruner_zero.choices import Group
from pruner_zero.execution.executor import UNLIMITED, TimeLimit
from pruner_zero.metric.expression import Expression
from pruner_zero.models.loss import next_token_losses
from pruner_zero.models.structure import Matrix
from pruner_zero.pruning.masks import choose_masks, reached_score
from pruner_zero.sparsity.hessian import Hessian
from pruner_zero.sparsity.pattern import Lazy, Pattern, groups
from pruner_zero.sparsity.steps.step import Layer, plan, run_steps

# Tokens of a forward pass on a GPU, which a small model does not fill with one window.
_BATCH_TOKENS = 4096


def candidate_masks(
    pattern: Pattern,
    blocks: Mapping[str, int],
    score: Callable[[str], Tensor | None],
    magnitudes: Callable[[str], Tensor],
    limit: TimeLimit = UNLIMITED,
) -> Iterator[Tensor]:
    """The masks (out, in), True = kept, of all matrices, in order.

    blocks: by the name of each matrix the number of its block. score: the scores of a matrix, None
    where calibration never reached it; such a matrix is scored by its `magnitudes`. Raises what
    `score` raises, PrunerZeroError over the time limit.
    """

    def checked(name: str) -> Tensor | None:
        limit.check()
        return score(name) if name in blocks else None

    for names in groups(pattern, blocks):
        masks = choose_masks(pattern, names, Lazy(names.copy, checked), magnitudes)
        yield from (masks[name] for name in names)


@dataclass(frozen=True)
class MaskedModel:
    """A model whose matrices can be masked by any metric, its dense weights kept beside.

    dense: by parameter name, in any dtype; scores and masks come from them, while `model`
    may be of another dtype, in which the losses are computed.
    statistics: by matrix name, the terminals G (out, in), X and D (1, in), O (out, 1), fp32.
    steps: the names of the steps after the mask, carried out as by `prune` where all statistics are
    the dense model's; hessians: by matrix name, the Hessian of the input of each matrix that they
    change. A matrix that calibration never reached has none, and is masked alone.
    """

    model: nn.Module
    matrices: Sequence[Matrix]
    dense: dict[str, Tensor]
    statistics: dict[str, dict[str, Tensor]]
    pattern: Pattern
    steps: tuple[str, ...] = ()
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
    def masked(
        self, expression: Expression, scope: Group, limit: TimeLimit = UNLIMITED
    ) -> Iterator[nn.Module]:
        """The model with the weights zeroed that `expression` ranks lowest within `scope`.

        Exact, as `prune` masks and updates. The dense weights are back afterwards. Raises
        ScoreError, and PrunerZeroError where a step fails or over the limit.
        """
        try:
            with torch.no_grad():
                masks = self.masks(expression, scope, limit)
                pairs = zip(self.matrices, masks, strict=True)
                for _, group in groupby(pairs, lambda pair: id(self.hessians.get(pair[0].name))):
                    for matrix, mask in group:
                        limit.check()
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
        if self.steps and hessian is not None:
            dense = matrix.view(self.dense[matrix.parameter_name])
            layer = Layer(dense.float(), hessian, self.pattern, mask, name=matrix.name)
            result = run_steps(layer, plan(self.steps))
            mask = result.mask
            matrix.weight.copy_(result.weight)
        matrix.weight.masked_fill_(~mask, 0)

    def masks(
        self, expression: Expression, scope: Group, limit: TimeLimit = UNLIMITED
    ) -> Iterator[Tensor]:
        """The masks (out, in) of all matrices, True = kept, in order. Raises ScoreError."""
        matrices = {matrix.name: matrix for matrix in self.matrices}
        return candidate_masks(
            self.pattern.with_scope(scope),
            {name: matrix.block for name, matrix in matrices.items()},
            lambda name: reached_score(expression, self.terminals(matrices[name])),
            lambda name: self.terminals(matrices[name])["W"],
            limit,
        )

    @torch.no_grad()
    def losses(
        self,
        expression: Expression,
        scope: Group,
        windows: Tensor,
        limit: TimeLimit = UNLIMITED,
        enough: Callable[[Sequence[float]], bool] = lambda losses: False,
    ) -> list[float]:
        """The pruned model's mean next-token loss on each of `windows` (n, tokens), in nats.

        enough: whether the losses so far suffice, so that the other windows are left out. A CPU
        runs one window at a time; on a GPU several share a forward pass.
        """
        losses: list[float] = []
        batch = 1 if self.device.type == "cpu" else max(1, _BATCH_TOKENS // windows.shape[1])
        with self.masked(expression, scope, limit) as model:
            for part in windows.split(batch) if len(windows) else ():
                limit.check()
                losses += next_token_losses(model, part).tolist()
                if enough(losses):
                    break
        return losses
