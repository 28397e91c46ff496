"""Sampled rows of every matrix, to judge a metric without running the model."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pruner_zero.choices import Group
from pruner_zero.evolution.candidate_masks import candidate_masks
from pruner_zero.execution import UNLIMITED, TimeLimit
from pruner_zero.metric import Expression
from pruner_zero.sparsity import STEPS, Layer, Pattern
from pruner_zero.sparsity.layer_error import TINY, output_sensitivity, pruning_cost, row_errors

# Rows of a matrix for which the steps after the mask are carried out, to estimate what it costs.
_UPDATED_ROWS = 16


@dataclass(frozen=True)
class SampledMatrix:
    """Some rows of one matrix with its statistics, fp32, and what pruning them costs.

    weight: (rows, in) signed. terminals: W, G, S (rows, in), X, D (1, in), O (rows, 1), those
    collected.
    gram: (in, in), shared between matrices with the same input; in bfloat16 the layer errors
    are computed in it. norms: (rows,), `w C wᵀ`.
    sensitivity: (rows,), see `output_sensitivity`; None where neither G nor O was collected.
    share: how many rows of the matrix each sampled row stands for. layer: these rows as the step
    `step` after the mask finds them; None where none follows, or where calibration never reached
    the matrix.
    """

    name: str
    block: int
    weight: Tensor
    terminals: dict[str, Tensor]
    gram: Tensor
    norms: Tensor
    sensitivity: Tensor | None
    share: float
    layer: Layer | None = None
    step: str | None = None

    def errors(self, mask: Tensor) -> Tensor:
        """`δ C δᵀ` of each row (rows,) for the weights δ that `mask` removes: the layer error."""
        return row_errors(self.weight.masked_fill(mask, 0), self.gram)

    def cost(self, mask: Tensor) -> float:
        """What pruning by `mask` (rows, in) costs, after the step where one follows.

        The step is carried out, or estimated where it has an estimate, on 16 of the rows, which
        stand for the others.
        """
        if self.layer is None or self.step is None:
            return pruning_cost(self.errors(mask), self.norms, self.sensitivity, self.share)
        index = _spread(len(mask), _UPDATED_ROWS).to(mask.device)
        weight = self.weight[index]
        step = STEPS[self.step]
        layer = replace(self.layer, dense=weight, mask=mask[index])
        updated = (step.estimate or step.run)(layer)
        errors = row_errors(weight - updated.weight.masked_fill(~updated.mask, 0), self.gram)
        sensitivity = None if self.sensitivity is None else self.sensitivity[index]
        share = self.share * len(mask) / len(index)
        return pruning_cost(errors, self.norms[index], sensitivity, share)


def _spread(total: int, count: int) -> Tensor:
    """At most `count` of `total` rows, evenly spread."""
    return torch.linspace(0, total - 1, min(count, total)).round().long()


def sample_matrix(
    name: str, block: int, dense: Tensor, statistics: dict[str, Tensor], gram: Tensor, rows: int
) -> SampledMatrix:
    """`rows` evenly spread rows of a dense (out, in) matrix of a block, with its terminals."""
    outputs = dense.shape[0]
    index = _spread(outputs, rows).to(dense.device)
    weight = dense[index].float()
    terminals = {"W": weight.abs(), "S": weight}
    for terminal, value in statistics.items():
        terminals[terminal] = value[index].contiguous() if value.shape[0] > 1 else value
    sensitivity = None
    if "G" in terminals:
        sensitivity = output_sensitivity(terminals["G"], gram)
    elif "O" in terminals:
        # O measures what `output_sensitivity` estimates from G; the half is that of gram = 2XᵀX.
        sensitivity = terminals["O"].square().squeeze(1) / 2
    norms = row_errors(weight, gram)
    share = outputs / len(index)
    return SampledMatrix(name, block, weight, terminals, gram, norms, sensitivity, share)


def sampled_masks(
    sample: Sequence[SampledMatrix],
    expression: Expression,
    scope: Group,
    pattern: Pattern,
    limit: TimeLimit = UNLIMITED,
) -> list[Tensor]:
    """The masks (rows, in) of all sampled matrices, as if they were the whole model.

    Raises ScoreError where the expression cannot score one of them, PrunerZeroError over the
    limit.
    """
    return list(
        candidate_masks(expression, scope, pattern, sample, lambda matrix: matrix.terminals, limit)
    )


def closed_form_error(sample: Sequence[SampledMatrix], masks: Sequence[Tensor]) -> float:
    """`ln Σ_m cost(m)`: what pruning costs, from the matrices alone; lower is better.

    The sum of `pruning_cost` over the sampled matrices. It ranks like the loss of the pruned
    model, within and across comparison groups (benchmarks/fitness.md, of masks alone).
    """
    total = sum(matrix.cost(mask) for matrix, mask in zip(sample, masks, strict=True))
    return math.log(max(total, TINY))
