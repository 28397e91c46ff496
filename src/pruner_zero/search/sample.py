"""A spread of rows of every matrix: enough to judge a metric without running the model."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pruner_zero.metric import Expression
from pruner_zero.search.masking import choose_masks
from pruner_zero.sparsity import Pattern, Scope

_TINY = torch.finfo(torch.float32).tiny


@dataclass(frozen=True)
class SampledMatrix:
    """Some rows of one matrix with its statistics, fp32, and what pruning them costs.

    weight: (rows, in) signed. terminals: W, G, S (rows, in), X, H (1, in), those collected.
    gram: (in, in), shared between matrices with the same input; in bfloat16 the layer errors
    are computed in it. norms: (rows,), `w C wᵀ`.
    sensitivity: (rows,), the mean squared gradient of the loss at the row's output, up to a
    constant: `Σ_j G_ij² / Σ_j X_j²`; None where G was not collected. share: how many rows
    of the matrix each sampled row stands for.
    """

    name: str
    weight: Tensor
    terminals: dict[str, Tensor]
    gram: Tensor
    norms: Tensor
    sensitivity: Tensor | None
    share: float

    def errors(self, mask: Tensor) -> Tensor:
        """`δ C δᵀ` of each row (rows,) for the weights δ that `mask` removes: the layer error."""
        removed = self.weight.masked_fill(mask, 0)
        return ((removed.to(self.gram.dtype) @ self.gram).float() * removed).sum(1)


def sample_matrix(
    name: str, dense: Tensor, statistics: dict[str, Tensor], gram: Tensor, rows: int
) -> SampledMatrix:
    """`rows` evenly spread rows of a dense (out, in) matrix with its terminals G, X, H."""
    outputs = dense.shape[0]
    index = torch.linspace(0, outputs - 1, min(rows, outputs)).round().long()
    weight, exact = dense[index].float(), gram.float()
    own = {"W": weight.abs(), "S": weight}
    for terminal, value in statistics.items():
        own[terminal] = value[index].contiguous() if value.shape[0] > 1 else value
    sensitivity = None
    if "G" in own:
        energy = exact.diagonal().sum().clamp_min(_TINY)
        sensitivity = own["G"].square().sum(1) / energy
    norms = ((weight @ exact) * weight).sum(1)
    share = outputs / len(index)
    return SampledMatrix(name, weight, own, gram, norms, sensitivity, share)


def sampled_masks(
    sample: Sequence[SampledMatrix], expression: Expression, scope: Scope, pattern: Pattern
) -> list[Tensor]:
    """The masks (rows, in) of all sampled matrices, as if they were the whole model.

    Raises ScoreError where the expression cannot score one of them.
    """
    terminals = [one.terminals for one in sample]
    names = [one.name for one in sample]
    return list(choose_masks(terminals, expression, scope, pattern, names))


def closed_form_error(sample: Sequence[SampledMatrix], masks: Sequence[Tensor]) -> float:
    """`ln Σ_m e_m / (1 − r_m)⁸`: what pruning costs, from the matrices alone; lower is better.

    e_m = Σ_i s_i · δ_i C δ_iᵀ is each matrix's layer error, its rows weighed by the mean squared
    gradient of the loss at their output, which makes matrices comparable; r_m = tr ΔCΔᵀ / tr WCWᵀ
    is the share of its output that it loses. Where G was not collected, e_m = r_m.
    Source: the objective of SparseGPT (2301.00774), with K-FAC's output factor (1503.05671)
    kept diagonal. The power of r_m is ours: a matrix that is pruned away costs far more than its
    gradient tells. It ranks like the loss in and across comparison groups
    (benchmarks/fitness.md).
    """
    total = 0.0
    for matrix, mask in zip(sample, masks, strict=True):
        errors = matrix.errors(mask)
        lost = float(errors.sum() / matrix.norms.sum().clamp_min(_TINY))
        felt = lost
        if matrix.sensitivity is not None:
            felt = matrix.share * float(errors @ matrix.sensitivity)
        total += felt / max(1 - lost, 1e-3) ** 8
    return math.log(max(total, _TINY))
