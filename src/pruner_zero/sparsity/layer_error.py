"""The cost of pruning a matrix, from its weights and statistics, without running the model."""

import torch
from torch import Tensor

# How steeply the cost of a matrix grows as more of its output is lost.
_POWER = 8
_LEAST_LEFT = 1e-3

TINY = torch.finfo(torch.float32).tiny


def row_errors(removed: Tensor, gram: Tensor) -> Tensor:
    """`δ C δᵀ` of each row of the `removed` weights (…, rows, in): the squared error at its output.

    gram (…, in, in): C = XᵀX or a positive multiple, in bfloat16 where the product may be. fp32.
    Source: the layer-wise objective of SparseGPT (2301.00774).
    """
    return ((removed.to(gram.dtype) @ gram).float() * removed).sum(-1)


def output_sensitivity(G: Tensor, gram: Tensor) -> Tensor:
    """The mean squared gradient of the loss at the output of each row, up to a constant.

    `Σ_j G_ij² / Σ_j C_jj`, (…, rows), of G (…, rows, in) and gram (…, in, in): a weight's gradient
    is its output's times its input. Source: the output factor of K-FAC (1503.05671), kept diagonal.
    """
    inputs = gram.diagonal(dim1=-2, dim2=-1).float().sum(-1, keepdim=True)
    return G.square().sum(-1) / inputs.clamp_min(TINY)


def pruning_cost(
    errors: Tensor, norms: Tensor, sensitivity: Tensor | None = None, share: float = 1.0
) -> Tensor:
    """`e / (1 − r)⁸`: what a matrix's layer error costs the model, comparable between matrices.

    errors, norms, sensitivity (…, rows): `δ C δᵀ`, `w C wᵀ` of the dense rows, and
    `output_sensitivity`. e = Σ s_i δ_i C δ_iᵀ, r = Σ δCδᵀ / Σ wCwᵀ the lost share of the output;
    without sensitivity e = r. share: how many rows each given one stands for. The costs are (…).
    Source: layer errors weighed by the curvature at the output, EigenDamage (Wang et al. 2019,
    1905.05934); the power is ours: pruning most of a matrix costs far more than its gradient
    predicts (benchmarks/decisions.md).
    """
    lost = errors.sum(-1) / norms.sum(-1).clamp_min(TINY)
    felt = lost if sensitivity is None else share * (errors * sensitivity).sum(-1)
    return felt / (1 - lost).clamp_min(_LEAST_LEFT) ** _POWER
